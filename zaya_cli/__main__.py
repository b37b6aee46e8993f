"""`python -m zaya_cli`, and so `torchrun -m zaya_cli midtrain ...`."""

import sys

from zaya_cli.app import main

sys.exit(main())

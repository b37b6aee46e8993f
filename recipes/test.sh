#!/usr/bin/env bash
# The README's second command: install what the tests need, lint, and run them. Arguments go to pytest (-m slow: the long ones).
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="[dev]"
. recipes/setup.sh
ruff check .
ruff format --check .
python -m pytest "$@"

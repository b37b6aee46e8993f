#!/usr/bin/env bash
# The README's second command: install what the tests need, lint, and run them. Arguments go to pytest (-m slow: the long ones).
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="[dev]"
. recipes/setup.sh
ruff check .
ruff format --check .
# One thread a worker: the tests are many small products, and two workers beat two threads.
OMP_NUM_THREADS=1 python -m pytest -n auto "$@"

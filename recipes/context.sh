#!/usr/bin/env bash
# From 512 tokens of context to 2048: loss and acceptance by position and a needle in a haystack, before and after.
# Usage: recipes/context.sh WORKDIR [STEPS_AT_512 [STEPS_TO_2048]]     resumable; the table is in recipes/training.md.
set -euo pipefail
work=${1:?usage: recipes/context.sh WORKDIR [STEPS_AT_512 [STEPS_TO_2048]]}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
. recipes/setup.sh
bundled=$(python -c 'from zaya_core.assets import BUNDLED; print(BUNDLED)')
[ -e "$work/short.jsonl" ] || python recipes/needles.py "$work/short.jsonl" 12000 32 480
[ -e "$work/long.jsonl" ] || python recipes/needles.py "$work/long.jsonl" 4000 64 2000
train=(--dtype "${DTYPE:-bfloat16}" --save-every 100 --quiet)
zaya midtrain "$bundled" "$work/at-512" --data "$work/short.jsonl:0.6" --data stdlib:0.4 --seq-len 512 --batch-size 8 \
  --max-steps "${2:-500}" --lr 1e-3 "${train[@]}"
zaya extend-context "$work/at-512" "$work/to-2048" --data "$work/long.jsonl:0.6" --data stdlib:0.4 --context 2048 --batch-size 2 \
  --rope-theta 4e5 --stages 512:0.2,1024:0.3,2048:0.5 --max-steps "${3:-300}" --lr 5e-4 "${train[@]}"

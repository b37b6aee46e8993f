#!/usr/bin/env bash
# From 512 tokens of context to 2048, on a model that can copy: loss and acceptance by position and a needle in a haystack, before and after.
# Usage: recipes/context.sh WORKDIR [STEPS_AR [STEPS_AT_512 [STEPS_TO_2048]]]     resumable; the table is in recipes/training.md.
set -euo pipefail
work=${1:?usage: recipes/context.sh WORKDIR [STEPS_AR [STEPS_AT_512 [STEPS_TO_2048]]]}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
. recipes/setup.sh
texts() { [ -e "$work/$1.jsonl" ] || python recipes/needles.py "$work/$1.jsonl" "$2" "$3"; }
texts near 40000 3     # tens of tokens
texts middle 20000 80  # up to 500
texts far 8000 330     # up to 2000
texts repeats 40000 repeats
train=(--dtype "${DTYPE:-float32}" --save-every 100 --quiet)
short=(--data "$work/near.jsonl:0.25" --data "$work/middle.jsonl:0.5" --data "$work/repeats.jsonl:0.25" --seq-len 512 --batch-size 8)
[ -d "$work/base" ] || zaya init tiny "$work/base" --data "$work/middle.jsonl" --data "$work/repeats.jsonl"
zaya midtrain "$work/base" "$work/ar" --objective ar "${short[@]}" --max-steps "${2:-1000}" --lr 4e-3 "${train[@]}"
[ -d "$work/tidar" ] || zaya convert "$work/ar" "$work/tidar" --block 16
zaya midtrain "$work/tidar" "$work/at-512" "${short[@]}" --max-steps "${3:-200}" --lr 2e-3 "${train[@]}"
zaya extend-context "$work/at-512" "$work/to-2048" --data "$work/far.jsonl" --context 2048 \
  --batch-size 2 --rope-theta 4e5 --stages 512:0.2,1024:0.3,2048:0.5 --max-steps "${4:-200}" --lr 1e-3 "${train[@]}"

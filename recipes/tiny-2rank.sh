#!/usr/bin/env bash
# The pipeline of zaya1-8b.sh for real, at toy size, on two CPU ranks (gloo): each stage under another axis.
# Usage: recipes/tiny-2rank.sh WORKDIR
set -euo pipefail
work=$(realpath -m "${1:?usage: recipes/tiny-2rank.sh WORKDIR}")
mkdir -p "$work"
cd "$(dirname "$0")/.."
. recipes/setup.sh
export OMP_NUM_THREADS=1
ZAYA="python -m torch.distributed.run --standalone --nproc-per-node 2 -m zaya_cli"
for n in $(seq 200); do echo "{\"prompt\": \"$n + $n =\", \"completion\": \" $((n + n))\"}"; done >"$work/sums.jsonl"
for n in $(seq 100); do echo "{\"text\": \"$(seq -s " " "$n" 400)\"}"; done >"$work/numbers.jsonl"
[ -d "$work/base" ] || zaya init tiny "$work/base" --data "$work/numbers.jsonl" --vocab-size 300
[ -d "$work/tidar" ] || zaya convert "$work/base" "$work/tidar" --block 16
$ZAYA midtrain "$work/tidar" "$work/at-256" --data "$work/numbers.jsonl" --seq-len 256 --batch-size 2 --max-steps 20 --quiet
$ZAYA extend-context "$work/at-256" "$work/at-2048" --data "$work/numbers.jsonl" --context 2048 --rope-theta 5e4 --stages 1k:0.5,2k:0.5 \
  --batch-size 1 --max-steps 4 --context-parallel 2 --eval-rows 1 --long-share 0 --quiet
$ZAYA sft "$work/at-2048" "$work/tuned" --data "$work/sums.jsonl" --seq-len 128 --batch-size 2 --max-steps 20 --expert-parallel 2 --quiet
zaya info "$work/tuned"
zaya generate "$work/tuned" --prompt "12 + 12 =" --sampler lossless --max-new-tokens 8

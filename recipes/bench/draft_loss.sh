#!/usr/bin/env bash
# Which draft loss and offset weights give the most tokens a forward at equal cost: the same AR base, the same steps and rows, held-out code.
# Usage: recipes/bench/draft_loss.sh WORKDIR [AR_STEPS [STEPS]]     resumable; the table is in recipes/training.md.
set -euo pipefail
work=${1:?usage: recipes/bench/draft_loss.sh WORKDIR [AR_STEPS [STEPS]]}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/../.."
. recipes/setup.sh
size=(--data stdlib --seq-len 512 --batch-size 8 --dtype "${DTYPE:-bfloat16}" --quiet)
[ -d "$work/base" ] || zaya init mini "$work/base" --data stdlib --quiet
zaya midtrain "$work/base" "$work/ar" --objective ar --max-steps "${2:-500}" --lr 1.5e-3 "${size[@]}"
[ -d "$work/tidar" ] || zaya convert "$work/ar" "$work/tidar" --block 16 --quiet
steps=${3:-250}
# variant NAME OPTIONS: train it, then draft and verify fifty held-out prompts, greedily and at temperature 1
variant() {
  zaya midtrain "$work/tidar" "$work/$1" --max-steps "$steps" --lr 1e-3 "${size[@]}" "${@:2}" >/dev/null
  for temperature in 0 1; do
    zaya generate "$work/$1" --input recipes/data/heldout.jsonl --sampler lossless --max-new-tokens 64 --ignore-eos \
      --temperature $temperature --seed 0 --json --quiet >"$work/$1-$temperature.jsonl"
    files+=("$1, T=$temperature=$work/$1-$temperature.jsonl")
  done
}
files=()
variant ce
variant ce-decay --offset-decay 0.8
variant kl+ce-decay --draft-loss ce+kl --kl-share 0.7 --offset-decay 0.8
python recipes/table.py "${files[@]}"

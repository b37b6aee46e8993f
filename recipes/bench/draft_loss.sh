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
# variant NAME OPTIONS: train it, then measure the samplers, greedy and at temperature 1
variant() {
  zaya midtrain "$work/tidar" "$work/$1" --max-steps "$steps" --lr 1e-3 "${size[@]}" "${@:2}"
  for temperature in 0 1; do
    NAME="$1, T=$temperature" TEMPERATURE=$temperature recipes/samplers.sh "$work/$1" recipes/data/heldout.jsonl 64 | grep -v tokens/forward
  done
}
variant ce
variant ce-decay --offset-decay 0.8
variant kl --draft-loss kl
variant kl+ce-decay --draft-loss ce+kl --kl-share 0.7 --offset-decay 0.8

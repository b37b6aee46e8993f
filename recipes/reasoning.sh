#!/usr/bin/env bash
# Diffusion SFT of the bundled model on three reasoning-gym tasks; held-out accuracy, end tokens and tokens/forward before and after.
# Usage: recipes/reasoning.sh WORKDIR [STEPS]     resumable; the table is in recipes/training.md.
set -euo pipefail
work=${1:?usage: recipes/reasoning.sh WORKDIR [STEPS]}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
. recipes/setup.sh
python -c 'import reasoning_gym' 2>/dev/null || python -m pip install --quiet reasoning-gym==0.1.25
[ -e "$work/train.jsonl" ] || python recipes/reasoning.py data "$work"
bundled=$(python -c 'from zaya_core.assets import BUNDLED; print(BUNDLED)')
zaya sft "$bundled" "$work/tuned" --data "$work/train.jsonl" --max-steps "${2:-1200}" --seq-len 512 --batch-size 8 --lr 1e-3 \
  --dtype "${DTYPE:-bfloat16}" --quiet
answer() {
  zaya generate "$1" --input "$work/heldout.jsonl" --sampler "$2" --max-new-tokens 32 --temperature 0 --json --quiet >"$work/$3.jsonl"
}
answer "$bundled" lossless before
for sampler in ar lossless mix; do answer "$work/tuned" $sampler $sampler; done
python recipes/reasoning.py score "$work" "before, lossless=$work/before.jsonl" "after, ar=$work/ar.jsonl" \
  "after, lossless=$work/lossless.jsonl" "after, mix=$work/mix.jsonl"

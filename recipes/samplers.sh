#!/usr/bin/env bash
# The three samplers side by side on the fifty held-out prompts: tokens per forward and tokens/s.
# Usage: recipes/samplers.sh [MODEL [PROMPTS [TOKENS]]]     MODEL "" is the bundled one. Environment: TEMPERATURE (1), NAME.
set -euo pipefail
model=${1:+$(realpath "$1")}
prompts=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
. recipes/setup.sh
tokens=${3:-128}
name=${NAME:-${model:-bundled}}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for sampler in ar lossless mix; do
  zaya generate ${model:+"$model"} --input "${prompts:-recipes/data/heldout.jsonl}" --sampler $sampler --max-new-tokens "$tokens" --ignore-eos \
    --temperature "${TEMPERATURE:-1}" --seed 0 --json --quiet >"$work/$sampler.jsonl"
done
python recipes/table.py "$name ar=$work/ar.jsonl" "$name lossless=$work/lossless.jsonl" "$name mix=$work/mix.jsonl"

#!/usr/bin/env bash
# One command on a fresh machine: make .venv, install, run the chain at toy size, compare the three samplers.
# Uses a torch that python3 already has (a ROCm or CUDA build survives); else installs 2.13.0, from TORCH_INDEX_URL if set.
set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/setup.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== the chain, at toy size =="
zaya init tiny "$work/base" --data stdlib --dtype float32
zaya midtrain "$work/base" "$work/ar" --objective ar --data stdlib --max-steps 150 --seq-len 256 --batch-size 8 --lr 3e-3
zaya convert "$work/ar" "$work/tidar" --block 16
zaya midtrain "$work/tidar" "$work/toy" --data stdlib --max-steps 150 --seq-len 256 --batch-size 8 --lr 3e-3

echo "== the bundled model continues some code =="
zaya generate --prompt $'import os\n\ndef list_files(path):\n' --sampler lossless --max-new-tokens 60 --temperature 0

echo "== three samplers, eight held-out prompts =="
head -n 8 recipes/data/heldout.jsonl >"$work/prompts.jsonl"
NAME=toy recipes/samplers.sh "$work/toy" "$work/prompts.jsonl" 64
NAME=bundled recipes/samplers.sh "" "$work/prompts.jsonl" 128

#!/usr/bin/env bash
# Makes the bundled checkpoint from the interpreter's standard library: init -> midtrain ar -> convert -> midtrain tidar.
# Usage: recipes/tiny.sh WORKDIR     an hour or more on 2 cores; rerun it after an interruption and it goes on.
# The log and the figures of the committed one are in recipes/tiny.md.
set -euo pipefail
work=${1:?usage: recipes/tiny.sh WORKDIR}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
. recipes/setup.sh
[ -d "$work/base" ] || zaya init mini "$work/base" --data stdlib
zaya midtrain "$work/base" "$work/ar" --objective ar --data stdlib \
  --max-steps 1200 --seq-len 512 --batch-size 8 --lr 1.5e-3
[ -d "$work/tidar" ] || zaya convert "$work/ar" "$work/tidar" --block 16
zaya midtrain "$work/tidar" "$work/tiny" --data stdlib \
  --max-steps 700 --seq-len 512 --batch-size 8 --lr 1e-3
echo "done: $work/tiny (copy its files, without checkpoints/, run.json and metrics.jsonl, to zaya_core/assets/tiny)"

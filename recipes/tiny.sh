#!/usr/bin/env bash
# Makes the bundled checkpoint of the interpreter's standard library and of tasks that reasoning-gym and recipes/tasks.py write:
# init -> midtrain ar -> convert -> midtrain tidar -> extend-context -> sft.
# Usage: recipes/tiny.sh WORKDIR     about an hour and a half on 2 cores; rerun it after an interruption and it goes on.
# The log and the figures of the committed one are in recipes/tiny.md. recipes/rerun.sh runs one stage of it again.
set -euo pipefail
work=${1:?usage: recipes/tiny.sh WORKDIR}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
EXTRAS=${EXTRAS:-[eval]}
. recipes/setup.sh
made() { [ -e "$work/$1" ] || { "${@:2:2}" "$work/.$1" "${@:4}" && mv "$work/.$1" "$work/$1"; }; }
rows=90000
train=(--optimizer muon --dtype bfloat16 --seq-len 512 --batch-size 8 --log-every 50 --save-every 100 --quiet)
texts=(--data stdlib:0.3 --data "$work/tasks.jsonl:0.5" --data "$work/repeats.jsonl:0.15" --data "$work/near.jsonl:0.05")
if [ ! -e "$work/mid/config.json" ]; then
  made tasks.jsonl python recipes/tasks.py "$rows"
  made repeats.jsonl python recipes/needles.py 30000 repeats # words said twice: without them nothing learns to copy
  made near.jsonl python recipes/needles.py 4000 20
  [ -e "$work/words.jsonl" ] || head -n 12000 "$work/tasks.jsonl" >"$work/words.jsonl"
  [ -d "$work/base" ] || zaya init mini "$work/base" --data stdlib --data "$work/words.jsonl"
  zaya midtrain "$work/base" "$work/ar" --objective ar "${texts[@]}" --max-steps 1000 --lr 1e-2 --warmup-ratio 0.12 --lr-scheduler constant "${train[@]}"
  [ -d "$work/tidar" ] || zaya convert "$work/ar" "$work/tidar" --block 16
  zaya midtrain "$work/tidar" "$work/mid" "${texts[@]}" --max-steps 120 --lr 7e-3 --lr-scheduler constant "${train[@]}"
fi
made far.jsonl python recipes/needles.py 3000 160
zaya extend-context "$work/mid" "$work/long" --data "$work/far.jsonl:0.5" --data stdlib:0.5 --context 8192 "${train[@]}" \
  --seq-len 2048 --batch-size 2 --stages 1024:0.5,2048:0.5 --max-steps 24 --lr 5e-3 --lr-scheduler constant
[ "${LAST:-sft}" = sft ] || exit 0
made tasks.jsonl python recipes/tasks.py "$rows"
made code.jsonl python recipes/code.py
zaya sft "$work/long" "$work/tiny" --data "$work/tasks.jsonl:0.85" --data "$work/code.jsonl:0.15" \
  --max-steps 1770 --lr 6e-3 --lr-scheduler cosine --min-lr-ratio 0.02 --eval-rows 16 "${train[@]}"
echo "done: $work/tiny (copy its files, without checkpoints/, run.json and metrics.jsonl, to zaya_core/assets/tiny)"

#!/usr/bin/env bash
# Predicted beside measured on this machine, and where ZAYA1-8B pays on an MI300X. The tables are in recipes/profile.md.
# Usage: recipes/profile.sh OUT     writes bench.txt, bundled.txt, settings.json, mi300x.txt, mi300x.png into OUT. Nothing else should run.
set -euo pipefail
mkdir -p "${1:?usage: recipes/profile.sh OUT}"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
EXTRAS="[plot]"
. recipes/setup.sh
shapes=(--batch 1,4,16 --context 128,1024,4096 --block 16)
zaya profile bench --measure --measure-seconds 0.2 "${shapes[@]}" --proposals 3,16 >"$out/bench.txt"
zaya profile --measure --measure-seconds 0.6 "${shapes[@]}" --proposals 1,3,16 --prompts recipes/data/heldout.jsonl --prompt-tokens 96 \
  --save-settings "$out/settings.json" >"$out/bundled.txt"
zaya profile zaya1-8b --device mi300x --plot "$out/mi300x.png" >"$out/mi300x.txt"
echo "see $out"

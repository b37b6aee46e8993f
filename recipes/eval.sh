#!/usr/bin/env bash
# Quality and speed of the samplers on held-out problems: JSON, table and frontier plot, and every completion.
# Usage: recipes/eval.sh MODEL WORKDIR     MODEL "" is the bundled one; resumable. Environment: PROBLEMS, SAMPLES, TOKENS, BATCH, SAMPLERS, and WITHOUT, files of rows whose problems are not asked.
set -euo pipefail
tasks=(
  reasoning-gym:chain_sum:min_terms=3,max_terms=4,min_digits=1,max_digits=1
  reasoning-gym:leg_counting:min_animals=1,max_animals=3,min_instances=1,max_instances=9
  reasoning-gym:number_filtering:min_numbers=3,max_numbers=3,min_decimals=0,max_decimals=0
  reasoning-gym:family_relationships:min_family_size=3,max_family_size=4
  reasoning-gym:needle_haystack:min_num_statements=2,max_num_statements=5
)
samplers=${SAMPLERS:-ar,lossless,mix:0.5,mix:0.2}
model=${1:+$(realpath "$1")}
work=${2:?usage: recipes/eval.sh MODEL WORKDIR}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
EXTRAS=${EXTRAS:-[eval,plot]}
. recipes/setup.sh
options=(--sampler "$samplers" --num-problems "${PROBLEMS:-200}" --num-samples "${SAMPLES:-1}" --max-new-tokens "${TOKENS:-256}"
  --batch-size "${BATCH:-16}" --temperature 1 --report "$work/report" --plot "$work/frontier.png" --quiet)
for task in "${tasks[@]}"; do options+=(--task "$task"); done
for rows in ${WITHOUT:-}; do options+=(--without "$rows"); done
zaya eval ${model:+"$model"} "${options[@]}" --json >"$work/eval.json"
zaya eval ${model:+"$model"} "${options[@]}" >"$work/eval.txt" # of what was just kept: nothing is decoded again
cat "$work/eval.txt"

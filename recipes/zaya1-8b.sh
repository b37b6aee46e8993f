#!/usr/bin/env bash
# ZAYA1-base to a diffusion model with 128k of context, in Zyphra's order: convert, 600 B tokens at 32k, 500 B to 128k, SFT, generate.
# Usage: recipes/zaya1-8b.sh BASE WORKDIR              on a machine of 8 x MI300X
#        sbatch recipes/zaya1-8b/slurm.sh BASE WORKDIR on 128 of them
#        DRY_RUN=1 [NODES=128] recipes/zaya1-8b.sh     what each stage will take; needs no weights, no data and no GPU
# Environment: TEXTS (long ones count: --long-share), CHAT (conversations). The stages' options are beside it, in zaya1-8b/*.yaml.
# A step has 16.8 M tokens on any number of nodes that divides 128. Every stage resumes: rerun the same command.
set -euo pipefail
nodes=${NODES:-1}
base=${1:-zaya1-base} work=$(realpath -m "${2:-zaya1}")
[ ! -d "$base" ] || base=$(realpath "$base")
cd "$(dirname "$0")/.."
. recipes/setup.sh
at=recipes/zaya1-8b
common=(--gradient-accumulation-steps $((128 / nodes)))
if [ -n "${DRY_RUN:-}" ]; then
  common+=(--dry-run --plan-for "$((8 * nodes))xmi300x")
  zaya midtrain "$base" "$work/at-32k" --config $at/midtrain.yaml "${common[@]}"
  zaya extend-context "$base" "$work/at-128k" --config $at/extend-context.yaml "${common[@]}"
  zaya sft zaya1-8b "$work/tuned" --config $at/sft.yaml "${common[@]}"
  exit
fi
# A save may take minutes after SIGTERM; by default torchrun kills its workers after 30 s.
launch="python -m torch.distributed.run --nproc-per-node 8 --shutdown-timeout 280"
ZAYA="$launch --standalone -m zaya_cli"
if [ "$nodes" -gt 1 ]; then
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  ZAYA="srun --ntasks-per-node 1 $launch --nnodes $nodes --rdzv-backend c10d --rdzv-endpoint $head:29500 -m zaya_cli"
fi
[ -d "$work/tidar" ] || zaya convert "$base" "$work/tidar" --block 16
# One process tokenises first: it may take longer than ranks wait for each other.
zaya midtrain "$work/tidar" "$work/at-32k" --config $at/midtrain.yaml "${common[@]}" --data "$TEXTS" --inspect 1 \
  --context-parallel 1
$ZAYA midtrain "$work/tidar" "$work/at-32k" --config $at/midtrain.yaml "${common[@]}" --data "$TEXTS"
zaya extend-context "$work/at-32k" "$work/at-128k" --config $at/extend-context.yaml "${common[@]}" --data "$TEXTS" --inspect 1 \
  --context-parallel 1
$ZAYA extend-context "$work/at-32k" "$work/at-128k" --config $at/extend-context.yaml "${common[@]}" --data "$TEXTS"
zaya sft "$work/at-128k" "$work/tuned" --config $at/sft.yaml "${common[@]}" --data "$CHAT" --inspect 1 --context-parallel 1
$ZAYA sft "$work/at-128k" "$work/tuned" --config $at/sft.yaml "${common[@]}" --data "$CHAT"
zaya generate "$work/tuned" --prompt "Why is the sky blue?" --sampler lossless

#!/usr/bin/env bash
#SBATCH --job-name=zaya1-8b --nodes=128 --ntasks-per-node=1 --gpus-per-node=8 --exclusive --signal=TERM@300
# The pipeline on 128 nodes: sbatch recipes/zaya1-8b/slurm.sh BASE WORKDIR, from the checkout, which all nodes must see.
# SLURM's SIGTERM, five minutes before the end, saves; sbatch it again and it goes on.
NODES=$SLURM_JOB_NUM_NODES exec "$SLURM_SUBMIT_DIR/recipes/zaya1-8b.sh" "$@"

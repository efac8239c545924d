#!/bin/bash
# One audit as a SLURM job array: sbatch --export=ALL,CHECKPOINT=model.safetensors slurm.sh [OPTION...]
# Every task computes a part into one run folder, and then what nobody has finished yet; the first
# task makes the report. A task that comes near its time limit puts itself into the queue again.
#SBATCH --job-name=purify-audit
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# On GPUs of one model only (#SBATCH --gpus-per-task=1 and, as your site calls it, --constraint):
# results agree bit for bit within one numerics class, and other parts are refused.

set -u
: "${CHECKPOINT:?the purifier to audit}"
: "${OUT:=verify.json}" # in a folder that all nodes see

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" # threads are part of the numerics class
srun purify-audit verify "$CHECKPOINT" --attack --run-dir "${OUT%.json}.run" --out "$OUT" \
    --quiet "$@"
code=$?

# 138 is SIGUSR1, and 143 SIGTERM, with which a preempted job ends: the run is not done.
if [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

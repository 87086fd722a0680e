#!/bin/bash
# One run on the nodes of a SLURM allocation: sbatch slurm.sh
#
# CONFIG and OUT must lie on a file system that all nodes mount in the same place. A job that is requeued, or submitted
# again, goes on from its newest checkpoint.
#SBATCH --job-name=sidgym
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log

set -euo pipefail

CONFIG=${CONFIG:-/shared/demo.toml}
OUT=${OUT:-/shared/runs}
PORT=${PORT:-6379}
CPUS=${SLURM_CPUS_PER_TASK:-8}
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# On one node, beside what runs there already; a step does not inherit the CPUs of the job.
step=(srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$CPUS")
first=--nodelist=${nodes[0]}

head=$("${step[@]}" "$first" hostname --ip-address | awk '{ print $1 }')
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

"${step[@]}" "$first" ray start --head --node-ip-address="$head" --port="$PORT" --num-cpus="$CPUS" --block &
until (exec 3<>"/dev/tcp/$head/$PORT") 2>/dev/null; do
    kill -0 $! # ends the job with an error if Ray has not stayed
    sleep 1
done
for node in "${nodes[@]:1}"; do
    "${step[@]}" --nodelist="$node" ray start --address="$head:$PORT" --num-cpus="$CPUS" --block &
done

# It waits for the nodes that are still on their way.
"${step[@]}" "$first" \
    sidgym rl "$CONFIG" --out "$OUT" --address "$head:$PORT" --resume --rl.env-runners 20 --rl.learners 2

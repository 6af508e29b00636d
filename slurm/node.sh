#!/bin/bash
# Started by srun once per node: NODES PROCESSES_PER_NODE ADDRESS PORT SCRIPTS [CONTAINER ...] -- ARGUMENTS
#
# `accelerate-launch` is `accelerate launch` without the imports of Accelerate's other commands, which saves three
# seconds per start. The launcher ignores USR2, which would kill it and orphan its processes; they handle it themselves.
trap "" USR2

nodes=$1 per_node=$2 address=$3 port=$4 scripts=$5
shift 5
container=()
while [ "$1" != -- ]; do
    container+=("$1")
    shift
done
shift

several=()
if [ $((nodes * per_node)) -gt 1 ]; then
    several=(--multi_gpu --machine_rank "$SLURM_NODEID" --main_process_ip "$address" --main_process_port "$port")
    several+=(--rdzv_backend static)
fi
program=(-m kdschemes train)
if [ -f "$scripts/run.py" ]; then
    program=("$scripts/run.py")
fi
exec "${container[@]}" accelerate-launch --config_file "$scripts/slurm/accelerate/job.yaml" \
    --num_machines "$nodes" --num_processes $((nodes * per_node)) "${several[@]}" \
    --mixed_precision no --dynamo_backend no "${program[@]}" "$@"

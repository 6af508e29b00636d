# shellcheck shell=bash
# Shared by the batch scripts, which source it: the site's settings, launch, signals, requeue.

set -u

fail() {
    echo "error: $*" >&2
    exit 2
}

srun="" limit="" ending="" woken="" nagging=""
# SLURM's warning ahead of the time limit.
trap 'woken=1; limit=1; tell_tasks' USR2
# SLURM ends the job itself: it was canceled, preempted or requeued, and SLURM decides what comes next.
trap 'woken=1; ending=1' TERM

# Have srun forward USR2 to every process of the job (launchers ignore it). It is repeated because a process that is
# still starting up does not handle it yet.
tell_tasks() {
    if [ -n "$srun" ] && [ -z "$nagging" ]; then
        while kill -USR2 "$srun" 2>/dev/null; do
            sleep 3
        done &
        nagging=$!
    fi
}

scripts=${KDSCHEMES_SCRIPTS:-$SLURM_SUBMIT_DIR}
[ -f "$scripts/slurm/node.sh" ] || fail "no slurm/node.sh in $scripts: submit from the folder that holds slurm/"
container=()
srun_options=()
if [ -f "$scripts/slurm/site.sh" ]; then
    # shellcheck source=slurm/site.example.sh
    . "$scripts/slurm/site.sh"
    if declare -F site_environment >/dev/null; then
        site_environment
    fi
fi
if [ ${#container[@]} -eq 0 ] && ! command -v accelerate-launch >/dev/null; then
    fail "no command accelerate-launch on $(hostname): activate the environment in slurm/site.sh (see slurm/site.example.sh)"
fi

# Start `kdschemes train ARGUMENTS` on every node of the job and wait until it ends. A run that was asked to stop (ahead of the
# time limit, or by `scancel --signal=TERM`) has written its checkpoint, and its job is requeued.
run_until_done() {
    local code=0 name="" steps=""
    local nodes=$SLURM_NNODES per_node address port
    per_node=${KDSCHEMES_PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
    address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    port=$((10000 + (SLURM_JOB_ID * 13 + ${SLURM_RESTART_COUNT:-0}) % 20000))
    export KDSCHEMES_STOPPED="$PWD/.kdschemes-$SLURM_JOB_ID.stopped"
    rm -f "$KDSCHEMES_STOPPED"
    echo "job $(job_name), start $((${SLURM_RESTART_COUNT:-0} + 1)), $nodes x $per_node processes: $SLURM_JOB_NODELIST"

    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 "${srun_options[@]}" \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        bash "$scripts/slurm/node.sh" "$nodes" "$per_node" "$address" "$port" "$scripts" "${container[@]}" -- "$@" &
    srun=$!
    [ -z "$limit" ] || tell_tasks
    while true; do
        wait "$srun"
        code=$?
        [ -n "$woken" ] || break
        woken=""
    done
    [ -z "$nagging" ] || kill "$nagging" 2>/dev/null
    [ ! -f "$KDSCHEMES_STOPPED" ] || read -r name steps <"$KDSCHEMES_STOPPED"
    rm -f "$KDSCHEMES_STOPPED"

    if [ "$code" -eq 0 ] || [ -n "$ending" ]; then
        exit "$code"
    elif [ -n "$limit" ] && [ "$name" != waiting ] && [ "${steps:-0}" -eq 0 ]; then
        fail "job $(job_name) came near its time limit before its first step and would do so again: give it more (--time)"
    elif [ -n "$limit" ] || [ -n "$name" ]; then
        requeue
    fi
    exit "$code"
}

job_name() {
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# Requeue the job, unless SLURM has done so: if it considered this node lost, the job already runs elsewhere.
requeue() {
    local restarts
    restarts=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep -o 'Restarts=[0-9]*' | cut -d= -f2)
    [ "${restarts:-0}" = "${SLURM_RESTART_COUNT:-0}" ] || fail "SLURM started job $(job_name) again elsewhere"
    echo "job $(job_name) stopped before its end: into the queue again"
    scontrol requeue "$(job_name)" || fail "job $(job_name) cannot be requeued: submit it again to resume"
    sleep 60
    exit 0
}

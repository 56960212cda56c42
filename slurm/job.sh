# Shared by the scripts in this folder, which source it. Needs the settings at their tops and a shared file system.
#
#   run_task COMMAND...     one process of `ccr-dist COMMAND` (task.sh)
#   run_ranks COMMAND...    one process a GPU on every node, by accelerate (ranks.sh)
#
# Both end the script. A signal (USR1 before the time limit, TERM) becomes a stop file that every process polls: neither
# srun nor launchers forward signals in a useful way. One place decides what happens to the job afterwards (finished,
# requeued without some nodes, given up): ccr_dist/cluster/decide.py.

set -u
cd "${ROOT:-$SLURM_SUBMIT_DIR}" || exit 2
# Where jobs start without the user's variables (sbatch --export=NONE), srun would pass on none either, not even those set below.
unset SLURM_EXPORT_ENV
export SCRIPTS SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export PYTHON=${PYTHON:-python} TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
export CCR_RUN=$RUN CCR_STEP=$STEP CCR_TASKS=${TASKS:-1} CCR_TASK=$((${OFFSET:-0} + ${SLURM_ARRAY_TASK_ID:-0}))
# The number of an array is also that of its last task: SLURM takes it for the whole array.
export CCR_JOB=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
export CCR_ATTEMPT=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} CCR_RETRIES=${RETRIES:-3}
export CCR_NOTES=$RUN/steps/$STEP/notes/$CCR_ATTEMPT # of this attempt's processes, on the shared file system; removed at its end
export CCR_STOP_FILE=$CCR_NOTES/stop:$RUN/stop # made below at a signal; by a person
export CCR_SCRATCH=${SCRATCH:-} # a folder on each node; node.sh makes its own in it, and removes that one alone
mkdir -p "$CCR_NOTES" || exit 5

heard="" again=""
hear() {
    again=1
    [ -z "$heard" ] || return 0
    heard=$1
    date +%s.%N >"$CCR_NOTES/heard"
    echo "$1" >"$CCR_NOTES/stop"
}
trap 'hear USR1' USR1
trap 'hear TERM' TERM

supervise() { # COMMAND...: waits until it has ended, whatever signals come meanwhile; its exit code
    local child code=127 status
    "$@" &
    child=$!
    again=1
    while [ -n "$again" ]; do
        again=""
        wait "$child"
        status=$?
        [ $status = 127 ] || code=$status # 127: it was waited for already
    done
    return $code
}

begin() {
    "$PYTHON" -c 'import ccr_dist.cluster.job' || elsewhere
    "$PYTHON" -m ccr_dist.cluster.job begin -- "${COMMAND[@]}" || exit $?
}

elsewhere() { # the one decision that is made here, since there is nothing on this node to decide with
    local excluded
    echo "$SLURMD_NODENAME: $PYTHON cannot import ccr_dist: no such environment there, or a damaged one" >&2
    excluded=$(scontrol show job -o "$CCR_JOB" | sed -n 's/.* ExcNodeList=\([^( ]*\).*/\1/p')
    excluded=$(scontrol show hostnames "$excluded,$SLURMD_NODENAME" | sort -u | xargs | tr ' ' ,)
    [ "$(tr , '\n' <<<"$excluded" | wc -l)" -le "$CCR_RETRIES" ] || exit 11
    echo "the job runs again, without $excluded" >&2
    trap '' TERM USR1
    scontrol requeue "$CCR_JOB" && scontrol update JobId="$CCR_JOB" ExcNodeList="$excluded"
    exit 11
}

finish() { # CODE
    trap '' TERM USR1 # a requeue sends them, too
    "$PYTHON" -m ccr_dist.cluster.job end --code "$1" --heard "$heard" -- "${COMMAND[@]}"
    exit $?
}

run_task() {
    begin
    if [ "${TASKS:-1}" -gt 1 ]; then set -- "$@" --share "$CCR_TASK/$TASKS"; fi
    supervise srun --export=ALL --nodes=1 --ntasks=1 ${PREFIX[@]+"${PREFIX[@]}"} bash "$SCRIPTS/task.sh" "$@"
    finish $?
}

run_ranks() {
    begin
    CCR_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
    CCR_PORT=$((15000 + 2 * ((SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 7500))) # and the next one
    export CCR_HEAD CCR_PORT CCR_LAUNCH=${LAUNCH:-$SCRIPTS/../launch/accelerate/ddp.yaml} CCR_RANKS=${RANKS:-} CCR_PREFLIGHT=${PREFLIGHT:-full}
    supervise srun --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
        ${PREFIX[@]+"${PREFIX[@]}"} bash "$SCRIPTS/ranks.sh" "$@"
    finish $?
}

# What a node needs before anything starts on it; sourced by task.sh and ranks.sh.
trap : TERM USR1 # of those the processes below hear by themselves; this shell stays until they have ended
# SLURM sets TMPDIR to /tmp in every job, so only the folder that was made here, under its own variable, is removed at the end.
if [ -n "${CCR_SCRATCH:-}" ]; then
    own_scratch=$(mktemp -d "$CCR_SCRATCH/ccr-dist-$SLURM_JOB_ID.XXXXXXXX") || exit 5
    export TMPDIR=$own_scratch
    trap 'rm -rf --one-file-system -- "$own_scratch"' EXIT
fi
if ! "$PYTHON" -c 'import ccr_dist' 2>"$CCR_NOTES/python-$SLURMD_NODENAME"; then
    echo "$SLURMD_NODENAME: $PYTHON cannot import ccr_dist: $(tail -n 1 "$CCR_NOTES/python-$SLURMD_NODENAME")" >&2
    printf '{"node": "%s", "ranks": 0, "problems": ["%s cannot import ccr_dist: no such environment there, or a damaged one"]}\n' \
        "$SLURMD_NODENAME" "$PYTHON" >"$CCR_NOTES/node-$SLURMD_NODENAME.json"
    exit 11
fi

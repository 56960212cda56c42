# The ranks of one node, started by srun on each: ranks.sh COMMAND...
# The node is looked at first (ccr_dist/cluster/preflight.py); that tells, too, how many ranks run here and in all.
. "$SCRIPTS/node.sh"
checked=$("$PYTHON" -m ccr_dist.cluster.preflight) || exit $?
read -r here all <<<"$checked"
# Ranks hear SLURM's SIGTERM themselves, and save. Their launcher is not to: it would kill them after 30 s.
export PET_SIGNALS_TO_HANDLE=SIGINT
trap '' TERM USR1
# accelerate divides the number of processes by that of machines, and so each node starts its own number.
"$PYTHON" -m accelerate.commands.launch --config_file "$CCR_LAUNCH" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes $((here * SLURM_NNODES)) --main_process_ip "$CCR_HEAD" --main_process_port "$CCR_PORT" \
    -m ccr_dist.cluster.rank "$@" --world "$all"

# The ranks of one node, started by srun on each: ranks.sh COMMAND...
# First the node is checked (ccr_dist/cluster/preflight.py), which also tells how many ranks run here and in total.
. "$SCRIPTS/node.sh"
checked=$("$PYTHON" -m ccr_dist.cluster.preflight) || exit $?
read -r here all <<<"$checked"
# Ranks receive SLURM's SIGTERM themselves, and save. Their launcher must not receive it: it would kill them after 30 s.
export PET_SIGNALS_TO_HANDLE=SIGINT
trap '' TERM USR1
# accelerate divides the number of processes by the number of machines; so each node starts its own number.
"$PYTHON" -m accelerate.commands.launch --config_file "$CCR_LAUNCH" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes $((here * SLURM_NNODES)) --main_process_ip "$CCR_HEAD" --main_process_port "$CCR_PORT" \
    -m ccr_dist.cluster.rank "$@" --world "$all"

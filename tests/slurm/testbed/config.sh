# Files of the cluster: keys, hosts, slurm.conf, wrappers. Sourced by testbed.sh.

write_files() {
    local i command
    mkdir -p "$DIR"/{etc,log,run,state,spool,dev,bin,munge}
    chmod 711 "$DIR/munge"
    chmod 700 "$DIR/state"
    dd if=/dev/urandom of="$DIR/munge/munge.key" bs=128 count=1 status=none
    chmod 400 "$DIR/munge/munge.key"
    # Device files that are none: a made-up GPU must be a device for SLURM to set CUDA_VISIBLE_DEVICES.
    for ((i = 0; i < GPUS; i++)); do mknod "$DIR/dev/gpu$i" c 1 3; done
    {
        printf '127.0.0.1 localhost\n::1 localhost\n%s.1 ctl\n' "$NETWORK"
        for ((i = 1; i <= NODES; i++)); do printf '%s.%d n%d\n::ffff:%s.%d n%d\n' "$NETWORK" $((10 + i)) $i "$NETWORK" $((10 + i)) $i; done
    } >"$DIR/etc/hosts"
    slurm_conf >"$DIR/etc/slurm.conf"
    echo "NodeName=n[1-$NODES] Name=gpu Type=fake File=$DIR/dev/gpu[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
    for command in sbatch srun squeue scancel scontrol sinfo; do
        cat >"$DIR/bin/$command" <<WRAPPER
#!/bin/sh
# On the machine itself: from the login host. In a job: as it is.
if [ "\$(readlink /proc/self/ns/net)" = "$(readlink /proc/self/ns/net)" ]; then
    read -r pid _ <"$DIR/run/ctl.host" && exec nsenter -t "\$pid" -n -u -m --wd="\$PWD" -- /usr/bin/$command "\$@"
fi
exec /usr/bin/$command "\$@"
WRAPPER
        chmod 755 "$DIR/bin/$command"
    done
    printf 'NODES=%q GPUS=%q TTL=%q WRITABLE=(%s) READABLE=(%s)\n' \
        "$NODES" "$GPUS" "$TTL" "${WRITABLE[*]@Q}" "${READABLE[*]@Q}" >"$DIR/settings"
}

slurm_conf() {
    cat <<CONF
ClusterName=testbed
SlurmctldHost=ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire before it may start again: 120 s by default
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
# No cgroups, no systemd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
MpiDefault=none
MailProg=/bin/true
# CPUs, memory and GPUs are made up
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
MaxArraySize=101
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
# A node that is gone is noticed soon, and processes that do not end on SIGTERM get KillWait seconds
SlurmdTimeout=10
KillWait=$KILL_WAIT
MessageTimeout=10
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-$NODES] Port=6818 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:fake:$GPUS State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=20 PreemptMode=OFF State=UP
CONF
}

# Hosts of the testbed: namespaces, processes and network links. Sourced by testbed.sh; knows nothing of SLURM.
#
# A host is a PID, mount, UTS, IPC and network namespace whose PID 1 is a small shell: ending that one process ends the host with all that
# runs on it, without a FIN on any connection once its link is down. Host `ctl` holds the bridge; the nodes n1, n2, ... hang on it. No
# address of them exists outside the namespaces, and there is no way out.

NETWORK=10.77.0

starttime() { # PID: tells a process from another one that got its number; nothing for a zombie
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    [ "$1" != Z ] && echo "${20}"
}

same_process() { # FILE of "pid starttime": the pid, if that process still lives
    local pid start
    [ -f "$1" ] && read -r pid start <"$1" || return 1
    [ -n "$start" ] && [ "$(starttime "$pid" 2>/dev/null)" = "$start" ] && echo "$pid"
}

host_pid() { same_process "$DIR/run/$1.host"; }

in_host() { # NAME COMMAND...: in all namespaces of the host
    local name=$1 pid
    shift
    pid=$(host_pid "$name") || die "host $name is not running"
    SLURM_CONF=$DIR/etc/slurm.conf nsenter -t "$pid" -p -m -u -i -n --wd=/ -- "$@"
}

on_login_host() { # COMMAND...: sees the machine's processes, and the cluster's network
    local pid
    pid=$(host_pid ctl) || die "host ctl is not running"
    SLURM_CONF=$DIR/etc/slurm.conf nsenter -t "$pid" -n -u -m --wd="$PWD" -- "$@"
}

host_up() { # NAME KIND(ctl|node)
    local name=$1 kind=$2 proc=() outer pid="" i
    [ "$kind" = node ] && proc=(--mount-proc)
    rm -f "$DIR/run/$name.ready"
    setsid unshare --pid --fork --kill-child=KILL --mount --propagation private --uts --ipc --net "${proc[@]}" -- \
        bash "$HERE/init.sh" "$DIR" "$name" "$TTL" "$kind" "${WRITABLE[@]/#/rw:}" "${READABLE[@]/#/ro:}" </dev/null >"$DIR/log/init.$name.log" 2>&1 &
    outer=$!
    echo "$outer $(starttime "$outer")" >"$DIR/run/$name.unshare"
    for ((i = 0; i < 400; i++)); do
        [ -e "$DIR/run/$name.ready" ] && break
        kill -0 "$outer" 2>/dev/null || break
        sleep .05
    done
    [ -e "$DIR/run/$name.ready" ] || { cat "$DIR/log/init.$name.log" >&2; die "host $name did not start"; }
    pid=$(cat "/proc/$outer/task/$outer/children")
    pid=${pid%% *}
    [ -n "$pid" ] || die "host $name: no PID 1"
    echo "$pid $(starttime "$pid")" >"$DIR/run/$name.host"
    disown "$outer" 2>/dev/null || true
}

host_down() { # NAME
    local file pid i
    for file in "$DIR/run/$1.host" "$DIR/run/$1.unshare"; do
        pid=$(same_process "$file") && kill -KILL "$pid" 2>/dev/null || true
    done
    for file in "$DIR/run/$1.host" "$DIR/run/$1.unshare"; do
        for ((i = 0; i < 200; i++)); do same_process "$file" >/dev/null || break; sleep .02; done
        rm -f "$file"
    done
}

bridge_up() { in_host ctl sh -c "ip link add br0 type bridge && ip addr add $NETWORK.1/24 dev br0 && ip link set br0 up"; }

link_up() { # NODE INDEX
    local ctl node
    ctl=$(host_pid ctl) node=$(host_pid "$1")
    nsenter -t "$ctl" -n sh -c "ip link del v$1 2>/dev/null
        ip link add v$1 type veth peer name eth0 netns $node && ip link set v$1 master br0 up"
    nsenter -t "$node" -n sh -c "ip link set eth0 address 02:00:00:00:4d:$(printf %02x "$2") &&
        ip addr add $NETWORK.$((10 + $2))/24 dev eth0 && ip link set eth0 up"
}

link_set() { nsenter -t "$(host_pid ctl)" -n ip link set "v$1" "$2"; } # NODE up|down

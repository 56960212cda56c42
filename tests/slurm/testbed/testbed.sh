#!/usr/bin/env bash
# A real SLURM cluster of several hosts on one machine, for tests. Root only; Debian or Ubuntu with the packages that `install` names.
#
#   testbed.sh up [NODES] [FOLDER...]       start slurmctld and NODES (4) hosts with a slurmd each; jobs can write into these folders only
#   testbed.sh down                         end it; only DIR/log stays
#   testbed.sh env                          exports for a shell: eval "$(testbed.sh env)"
#   testbed.sh login COMMAND...             run a command on the login host, where the folder is that it is called in
#   testbed.sh on NODE|ctl COMMAND...       run a command on a host, outside of SLURM
#   testbed.sh crash NODE | boot NODE       power off: every process dies, and no connection is closed | power on
#   testbed.sh cut NODE | heal NODE         the network link
#   testbed.sh kill NODE|ctl | start NODE|ctl     only the daemon: slurmd or slurmctld
#   testbed.sh wait-idle [SECONDS]          until every node is idle
#   testbed.sh install                      the Debian packages, where they are missing
#
# TESTBED_DIR (/tmp/ccr-testbed; short, since unix sockets lie in it), TESTBED_TTL (hosts end by themselves after so many seconds),
# TESTBED_READABLE (folders below /tmp that hosts are to see, with colons between them: hosts have a /tmp of their own).
set -euo pipefail
umask 022
export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR=${TESTBED_DIR:-/tmp/ccr-testbed} TTL=${TESTBED_TTL:-5400} NODES=4 GPUS=2 KILL_WAIT=5 GRACE=30 WRITABLE=() READABLE=()
MARK=$DIR/.testbed
PACKAGES=(munge slurmctld slurmd slurm-client iproute2 util-linux)

die() { echo "testbed: $*" >&2; exit 1; }
load() { [ -f "$MARK" ] && [ -f "$DIR/settings" ] || die "no cluster under $DIR"; . "$DIR/settings"; }
. "$HERE/hosts.sh"
. "$HERE/config.sh"

missing() {
    local command
    for command in munged slurmctld slurmd sbatch ip nsenter; do command -v "$command" >/dev/null || echo "$command"; done
}

install() {
    [ -n "$(missing)" ] || return 0
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "missing: $(missing | xargs); install ${PACKAGES[*]} (Debian's names)"
    # The packages must not start services of their own.
    local policy=/usr/sbin/policy-rc.d made="" log rc=0
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=1; }
    log=$(mktemp)
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}"; } >"$log" 2>&1 </dev/null || rc=$?
    [ -z "$made" ] || rm -f $policy
    [ $rc = 0 ] || tail -20 "$log" >&2
    rm -f "$log"
    [ $rc = 0 ] || die "apt-get failed"
}

node_index() { local i=${1#n}; [[ $i =~ ^[0-9]+$ ]] && ((i >= 1 && i <= NODES)) || die "no node '$1'"; echo "$i"; }
start_daemon() { # NODE|ctl [slurmd's flags]
    local name=$1
    shift
    if [ "$name" = ctl ]; then set -- slurmctld -i; else set -- slurmd -N "$name" "$@"; fi
    in_host "$name" "$@" </dev/null >>"$DIR/log/start.$name.log" 2>&1
}
node_up() { # NODE [slurmd's flags]
    local name=$1 index
    shift
    index=$(node_index "$name")
    host_up "$name" node
    link_up "$name" "$index"
    start_daemon "$name" "$@"
}
wait_idle() {
    local end=$((SECONDS + ${1:-60})) idle
    while :; do
        idle=$(on_login_host timeout 5 sinfo -h -N -p main -o '%N %T' 2>/dev/null | awk '$2 == "idle"' | wc -l) || idle=0
        [ "$idle" = "$NODES" ] && return 0
        ((SECONDS < end)) || { on_login_host timeout 5 sinfo -N -l >&2 || true; return 1; }
        sleep .2
    done
}

up() {
    NODES=${1:-4}
    [ $# -eq 0 ] || shift
    WRITABLE=("$@")
    IFS=: read -ra READABLE <<<"${TESTBED_READABLE:-}"
    local folder
    for folder in "$DIR" "${WRITABLE[@]}"; do [[ $folder = /*/* ]] || die "'$folder': expected the absolute path of a folder below another"; done
    for folder in "${WRITABLE[@]}"; do [ -d "$folder" ] || die "$folder: no such folder"; done
    [ "$(id -u)" = 0 ] || die "must be root: hosts are namespaces"
    [ -z "$(missing)" ] || die "missing: $(missing | xargs); run $0 install, or install ${PACKAGES[*]} (Debian's names)"
    if [ -e "$DIR" ]; then
        [ -f "$MARK" ] || [ -z "$(ls -A "$DIR")" ] || die "$DIR is not mine, not touching it"
        down
        rm -rf "$DIR"
    fi
    mkdir -p "$DIR"
    chmod 755 "$DIR"
    : >"$MARK"
    write_files
    trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM
    trap 'rc=$?; trap - EXIT; [ $rc = 0 ] || { tail -n 5 "$DIR"/log/*.log >&2 || true; down; }; exit $rc' EXIT
    host_up ctl ctl
    bridge_up
    in_host ctl munged --force --key-file="$DIR/munge/munge.key" --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" \
        --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed" </dev/null >"$DIR/log/munged.log" 2>&1
    start_daemon ctl
    local i end=$((SECONDS + 60)) # a slurmd that finds no slurmctld tries again only after 10 s
    until on_login_host timeout 5 scontrol ping 2>/dev/null | grep -q UP; do ((SECONDS < end)) || die "slurmctld does not answer"; sleep .05; done
    for ((i = 1; i <= NODES; i++)); do node_up "n$i"; done
    wait_idle 90 || die "the nodes did not become idle"
    trap - EXIT
}
down() {
    [ -f "$MARK" ] || return 0
    local host file
    for host in "$DIR"/run/n*.unshare "$DIR"/run/ctl.unshare; do
        [ -e "$host" ] || continue
        host=${host##*/}
        host_down "${host%.unshare}"
    done
    for file in "$DIR"/*; do [ "$file" = "$DIR/log" ] || rm -rf "$file"; done
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
    up) up "$@" ;;
    down) down ;;
    install) install ;;
    env) load; printf 'export TESTBED_DIR=%q SLURM_CONF=%q PATH=%q:"$PATH"\n' "$DIR" "$DIR/etc/slurm.conf" "$DIR/bin" ;;
    login) load; on_login_host "$@" ;;
    on) load; in_host "$@" ;;
    crash) load; node_index "$1" >/dev/null; link_set "$1" down || true; host_down "$1" ;;
    boot) # All hosts share the kernel's boot time, by which SLURM tells a rebooted node: so it is told that the node was down.
        load
        if host_pid "$1" >/dev/null; then die "$1 is running"; fi
        on_login_host timeout 10 scontrol update nodename="$1" state=down reason=crashed >/dev/null 2>&1 || true
        node_up "$1" -c -b ;;
    cut) load; link_set "$1" down ;;
    heal) load; link_set "$1" up ;;
    kill) load; file=$DIR/run/slurmd.$1.pid; [ "$1" = ctl ] && file=$DIR/run/slurmctld.pid; in_host "$1" sh -c 'kill -KILL "$1"' - "$(cat "$file")" ;;
    start) load; start_daemon "$1" ;;
    wait-idle) load; wait_idle "${1:-60}" ;;
    *) sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
esac

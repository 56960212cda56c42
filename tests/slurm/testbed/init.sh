# PID 1 of one host: init.sh DIR NAME TTL KIND [rw:FOLDER | ro:FOLDER ...]
#
# Jobs run as root, and what they destroy would be the machine's. So a host sees every file system read-only, has a /tmp and a /dev/shm of its
# own in memory, and can write into DIR and the folders that are named with `rw:`, nowhere else. Of the machine's /tmp it sees what is named.
set -e
dir=$1 name=$2 ttl=$3 kind=$4
shift 4
hostname "$name" 2>/dev/null || echo "$name" >/proc/sys/kernel/hostname
mkdir -p /etc/slurm "$dir/tmp.$name"
mount --bind "$dir/etc/hosts" /etc/hosts
mount --bind "$dir/etc" /etc/slurm

# The new /tmp is made aside and put in place last, with the folders below /tmp that stay writable bound into it.
new_tmp=$dir/tmp.$name
mount -t tmpfs -o size=2g,mode=1777 tmpfs "$new_tmp"
outside=()
for each in "rw:$dir" "$@"; do
    folder=${each#r?:}
    case $each in
        r?:/tmp/*)
            mkdir -p "$new_tmp/${folder#/tmp/}"
            mount --bind "$folder" "$new_tmp/${folder#/tmp/}"
            [[ $each = rw:* ]] || mount -o remount,bind,ro "$new_tmp/${folder#/tmp/}"
            ;;
        rw:*) outside+=("$folder") ;;
    esac
done
while read -r _ _ _ _ point _; do
    point=$(printf %b "$point") # mountinfo writes a space as \040
    case $point in
        /proc | "$new_tmp" | "$new_tmp"/*) ;;
        *) mount -o remount,bind,ro "$point" 2>/dev/null || [ ! -e "$point" ] || echo "$point: stays writable" ;;
    esac
done </proc/self/mountinfo
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
for folder in "${outside[@]}"; do
    mount --bind "$folder" "$folder"
    mount -o remount,bind,rw "$folder"
done
mount --rbind "$new_tmp" /tmp
mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm
# Whoever makes a host waits for `ready`; nothing is ever started on one that could do harm.
for folder in / /etc /usr /home /root /var /var/tmp /opt /dev /proc/sys; do
    [ ! -w "$folder" ] || { echo "host $name could write into the machine's $folder" >&2; exit 1; }
done
ip link set lo up
: >"$dir/run/$name.ready"
set +e
sleep "$ttl" &
wait $! # bash reaps what the daemons leave behind

#!/bin/sh
# Runs a program in cgroups, mounts and /run directories of its own, all gone with its last process.
#
#   place.sh NAME FOLDER PROGRAM [ARGUMENT...]
#
# The caller has made the cgroup NAME in each hierarchy, with `clients` in it, and FOLDER. What runs
# here sees NAME as the root of each hierarchy, as it would in a container, and FOLDER on a tmpfs.
set -eu
CGROUPS=/sys/fs/cgroup

enter() {
    for file in "$CGROUPS/$1/cgroup.procs" "$CGROUPS"/*/"$1/cgroup.procs"; do
        [ -e "$file" ] && echo $$ >"$file"
    done
    return 0
}

if [ "${INSIDE-}" != yes ]; then
    enter "$1"
    INSIDE=yes exec unshare --cgroup --mount --propagation private "$0" "$@"
fi
unset INSIDE
name=$1 folder=$2
shift 2

mount -t tmpfs densebench "$folder"
mkdir "$folder/hierarchies"
if [ -e "$CGROUPS/cgroup.procs" ]; then
    mount --bind "$CGROUPS/$name" "$folder/hierarchies"
    umount --recursive --lazy "$CGROUPS"
    mount --move "$folder/hierarchies" "$CGROUPS"
else
    mount -t tmpfs densebench "$folder/hierarchies"
    for path in "$CGROUPS"/*; do
        there=$folder/hierarchies/${path##*/}
        if [ -L "$path" ]; then
            cp -P "$path" "$there"
        elif [ -d "$path/$name" ]; then
            mkdir "$there"
            mount --bind "$path/$name" "$there"
        fi
    done
    umount --recursive --lazy "$CGROUPS"
    mount --move "$folder/hierarchies" "$CGROUPS"
fi
for path in /run/containerd /run/denseshim /run/runc; do
    mkdir -p -m 0700 "$path"
    mount -t tmpfs -o mode=0700 densebench "$path"
done
mount --make-rshared /
enter clients
exec "$@"

#!/bin/sh
# Fails where a unit that runs from the payload wants something put where the payload has no mount point: such a unit
# would not start (226/NAMESPACE). Usage: check-mounts.sh TREE UNIT...
set -eu
tree=$1
shift
missing=0
for unit; do
    grep -q '^RootImage=' "$unit" || continue
    for target in $(sed -n \
        -e 's/^StateDirectory=/\/var\/lib\//p' -e 's/^CacheDirectory=/\/var\/cache\//p' \
        -e 's/^LogsDirectory=/\/var\/log\//p' -e 's/^ConfigurationDirectory=/\/etc\//p' \
        -e 's/^BindPaths=//p' -e 's/^BindReadOnlyPaths=//p' "$unit"); do
        target=${target#-}
        target=${target##*:}
        # What lies on the tmpfs or the API file systems that systemd mounts is made when it is needed.
        case $target in /run/* | /dev/* | /proc/* | /sys/*) continue ;; esac
        if [ ! -e "$tree$target" ]; then
            echo "$unit: the payload has no mount point $target; add it to packaging/payload/mount-points.txt" >&2
            missing=1
        fi
    done
done
exit $missing

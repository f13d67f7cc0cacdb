#!/bin/sh
# Extracts Debian's part of the payload, without installing it: no maintainer script runs, nothing of this machine gets
# in. Usage: debian.sh TREE DEBS; DEBS keeps what was fetched, and lists it in DEBS/index (name, version, architecture,
# SHA-256) for the bill of materials.
set -eu
export LC_ALL=C
here=$(dirname "$(realpath "$0")")
tree=$1
debs=$2

names() { sed -e '/^#/d' -e '/^$/d' "$1"; }

if [ ! -e "$debs/index" ]; then
    rm -rf "$debs"
    mkdir -p "$debs"
    # --variant=extract fetches and unpacks only; its own tree, which takes this machine's resolv.conf, is thrown away.
    mmdebstrap --quiet --variant=extract --include="$(names "$here/debian-packages.txt" | paste -sd,)" \
        --extract-hook='cp "$1"/var/cache/apt/archives/*.deb '"'$debs'" bookworm "$debs/tree"
    rm -rf "$debs/tree"
    for name in $(names "$here/left-out.txt"); do rm -f "$debs/${name}"_*.deb; done
    for deb in "$debs"/*.deb; do
        dpkg-deb --show --showformat='${Package} ${Version} ${Architecture} ' "$deb"
        sha256sum <"$deb" | cut -d' ' -f1
    done >"$debs/index.new"
    mv "$debs/index.new" "$debs/index"
fi

rm -rf "$tree"
mkdir -p "$tree/usr"
# One tree of programs and libraries, as an installed Debian 12 has it.
for directory in bin sbin lib lib64; do
    mkdir "$tree/usr/$directory"
    ln -s "usr/$directory" "$tree/$directory"
done
for deb in "$debs"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tree" --keep-directory-symlink --no-same-owner
done

# Licences stay; whatever is for reading, building or installing goes.
find "$tree/usr/share/doc" -mindepth 2 \( -type f -o -type l \) ! -name copyright -delete
find "$tree/usr/share/doc" -type d -empty -delete
for unused in boot home media mnt opt root usr/games usr/include usr/src usr/share/applications usr/share/bash-completion \
    usr/share/bug usr/share/info usr/share/lintian usr/share/locale usr/share/man usr/share/pixmaps usr/share/python3 \
    usr/lib/systemd usr/lib/tmpfiles.d usr/lib/udev usr/lib/valgrind usr/share/gcc usr/share/gdb var/backups var/cache \
    etc/apt etc/cron.daily etc/default etc/init.d etc/logrotate.d etc/pam.d etc/profile.d etc/skel etc/update-motd.d; do
    rm -rf "${tree:?}/$unused"
done

/sbin/ldconfig -X -r "$tree"
printf 'root:x:0:0::/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n' >"$tree/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$tree/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$tree/etc/nsswitch.conf"

#!/bin/sh
# Unpacks Debian's kernel into TREE without installing it: what would make an initrd there stays out.
# A hook of mmdebstrap's: kernel.sh TREE
set -eu
here=$(dirname "$(realpath "$0")")
tree=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
name=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
cd "$tree/tmp"
apt-get download --quiet=2 "$name"
dpkg-deb --fsys-tarfile "$name"_*.deb | tar -x --keep-directory-symlink -C "$tree"
rm "$name"_*.deb
kernel=${name#linux-image-}
sed -e '/^#/d' -e '/^$/d' "$here/left-out.txt" | while read -r part; do
    rm -rf "$tree/usr/lib/modules/$kernel/kernel/${part:?}"
done
chroot "$tree" depmod "$kernel"

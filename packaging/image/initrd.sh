#!/bin/sh
# Packs what leads from the firmware to the root: busybox, veritysetup, the modules of disks. Usage: initrd.sh TREE OUT
set -eu
here=$(dirname "$(realpath "$0")")
tree=$1
out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for directory in bin dev proc sys run root; do mkdir "$work/$directory"; done
ln -s bin "$work/sbin"

install -m 755 "$here/initrd/init" "$work/init"
install -m 755 "$tree/bin/busybox" "$work/bin/busybox"
for name in sh mount reboot sleep grep head cat sha256sum cut switch_root; do ln -s busybox "$work/bin/$name"; done
chroot "$tree" ldd /usr/sbin/veritysetup | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$tree/$(chroot "$tree" realpath "$library")" "$work$library"
done
install -m 755 "$tree/usr/sbin/veritysetup" "$work/bin/veritysetup"
install -m 755 "$tree/usr/bin/kmod" "$work/bin/modprobe"
chroot "$tree" ldd /usr/bin/kmod | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$tree/$(chroot "$tree" realpath "$library")" "$work$library"
done

kernel=$(ls "$tree/usr/lib/modules")
sed -e '/^#/d' -e '/^$/d' "$here/initrd/modules.txt" >"$work/modules"
while read -r module; do
    chroot "$tree" modprobe --set-version "$kernel" --show-depends "$module" | sed -n 's/^insmod //p'
done <"$work/modules" | tr -d ' ' | sort -u | while read -r file; do
    install -D -m 644 "$tree/$file" "$work$file"
done
cp "$tree/usr/lib/modules/$kernel"/modules.builtin* "$tree/usr/lib/modules/$kernel/modules.order" "$work/lib/modules/$kernel/"
depmod -b "$work" "$kernel"

find "$work" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$work" && find . | sort | cpio --quiet --create --format=newc --reproducible --owner=0:0) | zstd -q -19 -T0 >"$out"

#!/bin/sh
# Puts the appliance's disk image together, without mounts and loop devices: OUT, a sparse raw disk.
# Usage: build.sh PACKAGE OUT [PRESET [KEYS]]
#   PACKAGE  the project's Debian package
#   PRESET   directory whose files are laid over the system's: usr/share/secur-e-health/consortium.json (which consortium
#            the box joins unasked), etc/secur-e-health/, etc/systemd/network/, ...; empty: none
#   KEYS     directory with the maker's Secure Boot: db.key and db.crt, which sign all that the firmware starts, and
#            PK.auth, KEK.auth, db.auth, which it takes into its own store (secure-boot-keys.sh makes them)
# Needs root, as files in the image have owners, and Debian's archive for what is not cached yet.
set -eu
export LC_ALL=C
umask 022
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
package=$(realpath "$1")
mkdir -p "$(dirname "$2")"
out=$(realpath "$2")
preset=${3:+$(realpath "$3")}
keys=${4:+$(realpath "$4")}
[ -n "$keys" ] || echo "The image is unsigned (no Secure Boot keys): another system on its box opens its disk." >&2
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
version=$(dpkg-deb -f "$package" Version)

# Sizes in MiB. A slot has room for a system twice as large.
ESP=256
SLOT=1536
TREE=32
# They are the same on every box and in every release.
ESP_ID=5345482d-0000-4000-8000-000000000001
A_DATA=5345482d-0000-4000-8000-00000000000a
A_HASH=5345482d-0000-4000-8000-0000000000a1
B_DATA=5345482d-0000-4000-8000-00000000000b
B_HASH=5345482d-0000-4000-8000-0000000000b1
SALT=$(printf 'secur-e-health %s' "$version" | sha256sum | cut -d' ' -f1)

names() { sed -e '/^#/d' -e '/^$/d' "$1"; }

# 1. Debian: fetched and installed once for all releases with the same packages.
wanted=$( (names "$here/debian-packages.txt"; dpkg-deb -f "$package" Depends | tr ',' '\n' |
    sed 's/^ *//; s/[ (|].*//') | sort -u | paste -sd,)
key=$(echo "$wanted" | cat - "$here/kernel.sh" "$here/left-out.txt" | sha256sum | cut -c1-16)
base=$root/build/cache/image/$key.tar
if [ ! -e "$base" ]; then
    mkdir -p "$(dirname "$base")"
    mmdebstrap --quiet --mode=root --variant=essential --include="$wanted" \
        --customize-hook="$here/kernel.sh \"\$1\"" bookworm "$base.new.tar"
    mv "$base.new.tar" "$base"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir "$tree"
tar -C "$tree" -xf "$base" --numeric-owner

# 2. Ours: the package, and what makes a box of a computer.
cp "$package" "$tree/tmp/package.deb"
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod 755 "$tree/usr/sbin/policy-rc.d"
chroot "$tree" dpkg --install /tmp/package.deb >"$work/dpkg.log" 2>&1 || {
    cat "$work/dpkg.log" >&2
    exit 1
}
rm "$tree/usr/sbin/policy-rc.d" "$tree/tmp/package.deb"
mv "$tree/usr/share/doc/secur-e-health/examples/70-secur-e-health-usb.rules" "$tree/usr/lib/udev/rules.d"
cp -r --no-preserve=ownership "$here"/tree/. "$tree"
[ -z "$preset" ] || cp -r --no-preserve=ownership "$preset"/. "$tree"
"$here/settle.sh" "$tree" "$version"
# What is sealed while Secure Boot is off opens for any system, so a signed one makes no data partition then.
[ -z "$keys" ] || printf '[Unit]\nConditionSecurity=uefi-secureboot\n' \
    >"$tree/usr/lib/systemd/system/systemd-repart.service.d/secure-boot.conf"

# 3. The root: squashfs, and the tree of hashes beside it.
mksquashfs "$tree" "$work/root.raw" -noappend -quiet -no-progress -comp zstd -Xcompression-level 9 -reproducible \
    -wildcards -e 'boot/*' >/dev/null
[ "$(stat -c %s "$work/root.raw")" -le $((SLOT << 20)) ] || {
    echo "The system is larger than its slot." >&2
    exit 1
}
root_hash=$(veritysetup format --salt="$SALT" --uuid=$A_HASH "$work/root.raw" "$work/root.verity" |
    sed -n 's/^Root hash:[[:space:]]*//p')

# 4. Two slots' kernels with what leads to their roots, one file each, and the disk that they lie on.
mkdir -p "$work/esp/EFI/BOOT" "$work/esp/EFI/Linux" "$work/esp/loader"
"$here/initrd.sh" "$tree" "$work/initrd"
"$here/kernel-file.sh" "$tree" "$work/initrd" "$version" "seh-root-a seh-hash-a $root_hash" "$work/esp/EFI/Linux/seh-a+3.efi"
# The spare is the same system, and ranks lower.
"$here/kernel-file.sh" "$tree" "$work/initrd" "$version~spare" "seh-root-b seh-hash-b $root_hash" \
    "$work/esp/EFI/Linux/seh-b+3.efi"
cp "$tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi" "$work/esp/EFI/BOOT/BOOTX64.EFI"
printf 'timeout 0\neditor no\nauto-entries no\nauto-firmware no\n' >"$work/esp/loader/loader.conf"
# While the firmware is in setup mode, systemd-boot hands it the keys and restarts, before anything is sealed to them.
if [ -n "$keys" ]; then
    for file in "$work"/esp/EFI/BOOT/*.EFI "$work"/esp/EFI/Linux/*.efi; do
        sbsign --key "$keys/db.key" --cert "$keys/db.crt" --output "$file" "$file" 2>"$work/sbsign.log" || {
            cat "$work/sbsign.log" >&2
            exit 1
        }
    done
    mkdir -p "$work/esp/loader/keys/auto"
    for part in PK KEK db; do cp "$keys/$part.auth" "$work/esp/loader/keys/auto"; done
    echo 'secure-boot-enroll force' >>"$work/esp/loader/loader.conf"
fi
find "$work/esp" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
truncate -s ${ESP}M "$work/esp.raw"
mkfs.vfat --invariant -F 32 -n SEH-ESP "$work/esp.raw" >/dev/null
mcopy -i "$work/esp.raw" -s -m -Q "$work"/esp/* ::

start=1
rm -f "$out.new"
truncate -s $((start + ESP + 2 * (SLOT + TREE) + 1))M "$out.new"
layout=$work/layout
printf 'label: gpt\nlabel-id: 5345482d-0000-4000-8000-000000000000\n' >"$layout"
place() { # FILE MIB TYPE UUID NAME
    printf 'start=%sMiB, size=%sMiB, type=%s, uuid=%s, name=%s\n' "$start" "$2" "$3" "$4" "$5" >>"$layout"
    dd if="$1" of="$out.new" bs=1M seek="$start" conv=notrunc,sparse status=none
    start=$((start + $2))
}
linux=0fc63daf-8483-4772-8e79-3d69d8477de4
place "$work/esp.raw" $ESP c12a7328-f81f-11d2-ba4b-00a0c93ec93b $ESP_ID seh-esp
place "$work/root.raw" $SLOT $linux $A_DATA seh-root-a
place "$work/root.verity" $TREE $linux $A_HASH seh-hash-a
place "$work/root.raw" $SLOT $linux $B_DATA seh-root-b
place "$work/root.verity" $TREE $linux $B_HASH seh-hash-b
sfdisk --quiet --no-reread --no-tell-kernel --wipe never "$out.new" <"$layout" 2>/dev/null
mv "$out.new" "$out"

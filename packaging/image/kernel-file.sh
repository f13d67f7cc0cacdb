#!/bin/sh
# Joins kernel, initrd, command line and name into the one file that the firmware starts (a unified kernel image).
# Usage: kernel-file.sh TREE INITRD VERSION SLOT OUT; SLOT is "DATA HASH ROOT-HASH": two partitions
# by name, and what they hold.
set -eu
tree=$1
initrd=$2
version=$3
out=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086 # three words
set -- $4
mkdir "$work/slot"
printf 'DATA=%s\nHASH=%s\nROOT_HASH=%s\n' "$1" "$2" "$3" >"$work/slot/slot"
touch -d "@$SOURCE_DATE_EPOCH" "$work/slot/slot"
(cat "$initrd" && cd "$work/slot" && echo slot | cpio --quiet --create --format=newc --reproducible --owner=0:0 |
    zstd -q) >"$work/initrd"
sed "s/^IMAGE_VERSION=.*/IMAGE_VERSION=$version/" "$tree/usr/lib/os-release" >"$work/release"
# What this file's signature does not cover says nothing here: neither firmware's tables nor the disk's other partitions.
printf '%s' 'quiet loglevel=3 systemd.show_status=0 rd.systemd.show_status=0 vt.global_cursor_default=0 panic=5' \
    ' systemd.import_credentials=no systemd.gpt_auto=no' >"$work/line"

stub=$tree/usr/lib/systemd/boot/efi/linuxx64.efi.stub
# Behind what the stub holds itself, each part on a page of its own.
at=$(objdump -h "$stub" | awk 'NF == 7 { size = $3; address = $4 } END { print address, size }')
place=$(( (0x${at% *} + 0x${at#* } + 4095) & ~4095 ))
add() { # SECTION FILE
    objects="$objects --add-section $1=$2 --change-section-vma $1=$place"
    place=$(( (place + $(stat -c %s "$2") + 4095) & ~4095 ))
}
objects=
add .osrel "$work/release"
add .cmdline "$work/line"
add .initrd "$work/initrd"
add .linux "$(echo "$tree"/boot/vmlinuz-*)"
# shellcheck disable=SC2086 # options, one a word
objcopy $objects "$stub" "$out"

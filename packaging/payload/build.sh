#!/bin/sh
# Builds the payload of one release, the same bytes each time: OUT/app.raw (squashfs), and OUT/parts/, which lists what it
# was made of, for the bill of materials. `seh-provision release build` makes its record.
# Usage: build.sh [--extras worker,tpm,...] OUT VERSION
#   --extras  the extras of pyproject.toml to install; without `worker` the payload is small and trains nothing.
# PAYLOAD_COMPRESSION: of the squashfs, 1 to 22; 15 unless it is set. Less is sooner made, for tests.
set -eu
export LC_ALL=C
# Nothing in it depends on when it was made.
unset SOURCE_DATE_EPOCH
umask 022
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
extras=worker,tpm,piv,fido2,pkcs11,enrol,console
grep -q '^service = ' "$root/pyproject.toml" && extras=$extras,service
if [ "${1-}" = --extras ]; then
    extras=$2
    shift 2
fi
mkdir -p "$1"
out=$(realpath "$1")
version=$2
echo "$version" | grep -qxE '(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)' || {
    echo "A version is three numbers, such as 1.4.0; this is $version." >&2
    exit 2
}
python=$root/.venv/bin/python

# Debian and the libraries change seldom: they are put together once for all releases with the same ones.
key=$( (echo "$extras"; cat "$here"/debian* "$here/left-out.txt" "$here/python.sh" "$here/without-fapi.sh" \
    "$here/compile.sh" "$root/constraints.txt" &&
    sed -n '/^dependencies/,/^]/p; /^\[project.optional/,/^\[project.scripts/p' "$root/pyproject.toml") | sha256sum | cut -c1-16)
base=$root/build/cache/payload/$key
mkdir -p "$root/build/cache/payload"
exec 9>"$root/build/cache/payload/lock"
flock 9
if [ ! -d "$base" ]; then
    rm -rf "$base.new"
    mkdir -p "$base.new"
    debian=$(cat "$here"/debian*.* "$here/left-out.txt" | sha256sum | cut -c1-16)
    "$here/debian.sh" "$base.new/tree" "$root/build/cache/debs-$debian"
    cp "$root/build/cache/debs-$debian/index" "$base.new/debian.txt"
    "$here/python.sh" "$base.new/tree" "$extras" "$base.new/python.json"
    "$here/compile.sh" "$base.new/tree" "$base.new/tree/usr/lib/python3.11" \
        "$base.new/tree/usr/local/lib/python3.11/dist-packages"
    mv "$base.new" "$base"
fi
exec 9>&-

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source"
cp -r "$root/agent" "$root/README.md" "$root/LICENSE" "$work/source"
find "$work/source" -name __pycache__ -exec rm -rf {} +
sed -e "s/^version = .*/version = \"$version\"/" -e 's/^packages = .*/packages = ["agent"]/' \
    "$root/pyproject.toml" >"$work/source/pyproject.toml"
# Hard links: the libraries are only read.
tree=$root/build/cache/payload/tree-$$
trap 'rm -rf "$work" "$tree"' EXIT
cp -al "$base/tree" "$tree"
site=$tree/usr/local/lib/python3.11/dist-packages
PIP_CACHE_DIR="$root/build/cache/pip" "$python" -m pip install -qq --no-compile --no-deps --no-warn-script-location \
    --target "$work/site" "$work/source"
cp -r "$work/site/agent" "$work/site/secur_e_health-$version.dist-info" "$site"
for note in RECORD INSTALLER REQUESTED direct_url.json; do rm -f "$site/secur_e_health-$version.dist-info/$note"; done
for command in seh-agent seh-stick; do
    sed '1s|.*|#!/usr/bin/python3 -Ps|' "$work/site/bin/$command" >"$tree/usr/bin/$command"
    chmod 755 "$tree/usr/bin/$command"
done
# Where the readers' units start it.
mkdir -p "$tree/usr/lib/secur-e-health/bin"
ln -s /usr/bin/seh-stick "$tree/usr/lib/secur-e-health/bin/seh-stick"
"$here/compile.sh" "$tree" "$site/agent"
grep -vE '^(#|$)' "$here/mount-points.txt" | while read -r kind path; do
    mkdir -p "$tree$(dirname "$path")"
    case $kind in d) mkdir -p "$tree$path" ;; f) [ -e "$tree$path" ] || : >"$tree$path" ;; esac
done
"$here/check-mounts.sh" "$tree" "$root"/packaging/systemd/*.service \
    "$root"/packaging/systemd/*.service.d/*.conf

rm -f "$out/app.raw"
mksquashfs "$tree" "$out/app.raw" -noappend -quiet -no-progress -no-xattrs -all-root -comp zstd \
    -Xcompression-level "${PAYLOAD_COMPRESSION:-15}" \
    -reproducible -all-time 0 -mkfs-time 0 -root-mode 755 >/dev/null

mkdir -p "$out/parts"
cp "$base/python.json" "$out/parts"
while read -r name debian_version architecture digest; do
    licences=$(sed -n 's/^License: *//p' "$tree/usr/share/doc/$name/copyright" | sort -u | paste -sd'|')
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$debian_version" "$architecture" "$digest" "$licences"
done <"$base/debian.txt" >"$out/parts/debian.tsv"

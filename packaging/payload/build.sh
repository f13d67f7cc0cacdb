#!/bin/sh
# Builds the payload of one release, the same bytes each time: OUT/app.raw (squashfs), OUT/payload.json (what a release's
# record says of it) and OUT/parts/ (what it was made of, for the bill of materials).
# Usage: build.sh [--extras worker,tpm,...] OUT VERSION
#   --extras  the extras of pyproject.toml to install; without `worker` the payload is small and trains nothing.
# SOURCE_DATE_EPOCH: when the release was made; the last commit's time unless it is set.
set -eu
export LC_ALL=C
umask 022
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
extras=worker,tpm,piv,fido2,pkcs11,enrol,privacy
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
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
python=$root/.venv/bin/python

# Debian and the libraries change seldom: they are put together once for all releases with the same ones.
key=$( (echo "$extras"; cat "$here"/debian.sh "$here"/python.sh "$here"/compile.sh "$here"/*.txt "$root/constraints.txt" &&
    sed -n '/^dependencies/,/^]/p; /^\[project.optional/,/^\[project.scripts/p' "$root/pyproject.toml") | sha256sum | cut -c1-16)
base=$root/build/cache/payload/$key
if [ ! -d "$base" ]; then
    rm -rf "$base.new"
    mkdir -p "$base.new"
    debian=$(cat "$here"/debian*.* "$here/left-out.txt" | sha256sum | cut -c1-16)
    "$here/debian.sh" "$base.new/tree" "$root/build/cache/debs-$debian"
    cp "$root/build/cache/debs-$debian/index" "$base.new/debian.txt"
    "$here/python.sh" "$base.new/tree" "$extras" "$base.new/python.json"
    "$here/compile.sh" "$base.new/tree" "$base.new/tree/usr/lib/python3.11" \
        "$base.new/tree/usr/local/lib/python3.11/dist-packages"
    grep -vE '^(#|$)' "$here/mount-points.txt" | while read -r kind path; do
        mkdir -p "$base.new/tree$(dirname "$path")"
        case $kind in d) mkdir -p "$base.new/tree$path" ;; f) : >"$base.new/tree$path" ;; esac
    done
    mv "$base.new" "$base"
fi

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
rm -f "$site/secur_e_health-$version.dist-info/RECORD" "$site/secur_e_health-$version.dist-info/direct_url.json" \
    "$site/secur_e_health-$version.dist-info/REQUESTED" "$site/secur_e_health-$version.dist-info/INSTALLER"
for command in seh-agent seh-stick; do
    sed '1s|.*|#!/usr/bin/python3 -Ps|' "$work/site/bin/$command" >"$tree/usr/bin/$command"
    chmod 755 "$tree/usr/bin/$command"
done
"$here/compile.sh" "$tree" "$site/agent"
"$here/check-mounts.sh" "$tree" "$root"/packaging/systemd/*.service

rm -f "$out/app.raw"
env -u SOURCE_DATE_EPOCH mksquashfs "$tree" "$out/app.raw" -noappend -quiet -no-progress -no-xattrs -all-root -comp zstd \
    -reproducible -all-time 0 -mkfs-time 0 -root-mode 755 >/dev/null

# The hash tree is made anew on each box; the salt belongs to the release, so that its root hash can be signed.
salt=$(printf 'secur-e-health %s' "$version" | sha256sum | cut -d' ' -f1)
root_hash=$(veritysetup format "$out/app.raw" "$work/verity" --salt "$salt" |
    sed -n 's/^Root hash:[[:space:]]*//p')
printf '{"version":"%s","image":{"sha256":"%s","bytes":%d},"verity":{"root_hash":"%s","salt":"%s"},"commit":"%s","built_s":%d}\n' \
    "$version" "$(sha256sum <"$out/app.raw" | cut -d' ' -f1)" "$(stat -c %s "$out/app.raw")" "$root_hash" "$salt" \
    "${SEH_COMMIT:-$(git -C "$root" rev-parse HEAD)}" "$SOURCE_DATE_EPOCH" >"$out/payload.json"
mkdir -p "$out/parts"
cp "$base/debian.txt" "$base/python.json" "$out/parts"

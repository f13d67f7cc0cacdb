#!/bin/sh
# Builds a release from the sources, signs it, and makes the package around it. Usage: package.sh OUT VERSION [MAKER]
#   MAKER  the maker's directory (`seh-provision release init`). Unless it is named, one for tests lies in OUT/maker: its
#          keys lie open, so what they sign is for trying only.
set -eu
root=$(realpath "$(dirname "$0")/..")
mkdir -p "$1"
out=$(realpath "$1")
version=$2
maker=${3:-$out/maker}
release() { "$root/.venv/bin/seh-provision" release "$@" --directory "$maker"; }

draft=$maker/drafts/$version
if [ $# -lt 3 ]; then
    [ -e "$maker/release-keys.json" ] || release init --environment test
    rm -rf "$draft"
fi
if [ ! -e "$draft/release.json" ]; then
    "$root/packaging/payload/build.sh" "$out/payload" "$version"
    release build "$version" "$out/payload/app.raw" --commit "$(git -C "$root" rev-parse HEAD)"
    release sign "$draft/release.json" --yes
    release attest "$version" "$out/payload/parts"
fi
"$root/packaging/deb/build.sh" "$out" "$draft" "$maker"
ls -l "$out"/secur-e-health_"$version"_*.deb

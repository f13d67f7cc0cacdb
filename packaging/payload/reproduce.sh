#!/bin/sh
# Builds a payload once more, from nothing but what was downloaded, in another directory, and compares: whoever has the
# sources of a release can find out whether its image was made from them. Takes some minutes.
# Usage: reproduce.sh [--extras LIST] IMAGE VERSION
set -eu
root=$(realpath "$(dirname "$0")/../..")
extras=
if [ "${1-}" = --extras ]; then
    extras="--extras $2"
    shift 2
fi
image=$(realpath "$1")
again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
for part in agent packaging pyproject.toml constraints.txt README.md LICENSE; do cp -r "$root/$part" "$again"; done
ln -s "$root/.venv" "$again/.venv"
mkdir -p "$again/build/cache/pip"
for kept in "$root"/build/cache/debs-* "$root"/build/cache/pip/http*; do
    [ -e "$kept" ] && cp -r "$kept" "$again/build/cache/${kept#"$root"/build/cache/}"
done
# shellcheck disable=SC2086 - two words or none
"$again/packaging/payload/build.sh" $extras "$again/out" "$2"
cmp "$image" "$again/out/app.raw"
echo "The same $(stat -c %s "$image") bytes."

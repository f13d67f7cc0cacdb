#!/bin/sh
# Puts byte code beside every module: the payload is read-only, and start-up would compile each one anew.
# Usage: compile.sh TREE DIRECTORY...; each directory gets a process of its own, as what a process compiled before
# shows in the next module's byte code.
set -eu
tree=$1
shift
export LC_ALL=C PYTHONHASHSEED=0
python=$(dirname "$(realpath "$0")")/../../.venv/bin/python
[ "$("$python" -c 'import sys; print(*sys.version_info[:2])')" = "3 11" ] || {
    echo "The payload's Python is 3.11; its byte code must be made by the same." >&2
    exit 1
}
for directory; do
    find "$directory" -mindepth 1 -maxdepth 1 \( -type d ! -name __pycache__ -o -name '*.py' \)
done | sort | xargs -P2 -n1 "$python" -m compileall -qq --invalidation-mode unchecked-hash -s "$tree" -p / ||
    true # some libraries ship modules for other versions of Python, which do not compile and are never imported

#!/bin/sh
# Installs what the project needs on a Debian 12 machine: Debian packages where we may, Python packages in a venv of our own.
set -eu
venv=$1
here=$(dirname "$0")

packages=$(grep -v '^#' "$here/debian-packages.txt")
missing=$(for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
done)
if [ -n "$missing" ]; then
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    if [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; then
        echo "Installing Debian packages:" $missing
        $as_root apt-get update -qq
        DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "Not root and no sudo: these Debian packages are missing and stay so:" $missing >&2
    fi
fi

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
echo "Installing Python packages into $venv"
"$venv/bin/python" -m pip install -q --upgrade -c constraints.txt pip
"$venv/bin/python" -m pip install -q -c constraints.txt -e '.[worker,console,provision,demo,dev,pkcs11,enrol]'
# For its axe.min.js alone, which is run in Chromium; what it would bring along is another browser's driver.
"$venv/bin/python" -m pip install -q -c constraints.txt --no-deps axe-playwright-python
# These compile against Debian's libraries; without their headers, the demo falls back to software keys and tests fail.
if pkg-config --exists tss2-esys; then
    packaging/payload/without-fapi.sh "$venv/bin/python" -m pip install -q -c constraints.txt -e '.[tpm]'
fi
if pkg-config --exists libsystemd; then
    "$venv/bin/python" -m pip install -q -c constraints.txt -e '.[service]'
fi
if pkg-config --exists libpcsclite; then
    "$venv/bin/python" -m pip install -q -c constraints.txt -e '.[piv,fido2,card-tools]'
fi

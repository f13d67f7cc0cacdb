#!/bin/sh
# Runs a command, an installation of tpm2-pytss, where pkg-config does not know the TPM's feature API: with it, every
# process that uses the TPM would load curl, GnuTLS, Kerberos and LDAP, for functions that nothing of ours calls.
# Usage: without-fapi.sh COMMAND [ARGUMENT...]
set -eu
PKG_CONFIG_LIBDIR=$(mktemp -d)
trap 'rm -rf "$PKG_CONFIG_LIBDIR"' EXIT
export PKG_CONFIG_LIBDIR
for known in /usr/lib/*/pkgconfig/*.pc /usr/lib/pkgconfig/*.pc /usr/share/pkgconfig/*.pc; do
    case $known in */tss2-fapi.pc | *\**) ;; *) ln -sf "$known" "$PKG_CONFIG_LIBDIR" ;; esac
done
"$@"

#!/bin/sh
# Makes the maker's keys for Secure Boot, once for all images, into DIR, which must not be there yet.
# Usage: secure-boot-keys.sh DIR [NAME]; NAME stands in the certificates.
#   db   its key signs what a box starts; build.sh needs db.key and db.crt
#   KEK  its key could change db and dbx later; PK: its key could change KEK. Both keys are best kept elsewhere
#   *.auth  what a box's firmware is given, the certificates alone
# Nothing here runs out: firmware asks no clock. They are RSA 2048 with SHA-256, all that every firmware knows.
set -eu
umask 077
name=${2:-Secur-e-Health}
mkdir -p "$(dirname "$1")"
mkdir "$1"
cd "$1"
owner=$(cat /proc/sys/kernel/random/uuid)
for part in PK KEK db; do
    openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$part.key"
    openssl req -new -x509 -key "$part.key" -sha256 -days 10950 -subj "/CN=$name Secure Boot $part/" -out "$part.crt"
    cert-to-efi-sig-list -g "$owner" "$part.crt" "$part.esl" >/dev/null
done
publish() { # PART SIGNER
    sign-efi-sig-list -g "$owner" -k "$2.key" -c "$2.crt" "$1" "$1.esl" "$1.auth" >/dev/null
    rm "$1.esl"
}
publish PK PK
publish KEK PK
publish db KEK
chmod 644 ./*.crt ./*.auth

#!/bin/sh
# Builds the Debian package, the same bytes each time: OUT/secur-e-health_VERSION_amd64.deb
# Usage: build.sh OUT RELEASE TRUST
#   RELEASE  directory of the first payload: app.raw and release.json, its signed record, and, where there are such,
#            sbom.cdx.json and provenance.json
#   TRUST    directory with release-keys.json, who may sign releases, and release-root.json, the release repository's root
# SOURCE_DATE_EPOCH: when the release was made; the last commit's time unless it is set.
# SEH_MAINTAINER: who answers for the package: Name <address>.
set -eu
export LC_ALL=C
umask 022
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
out=$1
release=$2
trust=$3
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
maintainer=${SEH_MAINTAINER:-Secur-e-Health <maintainers@secur-e-health.invalid>}
version=$(sed -n 's/.*"payload": *"\([^"]*\)".*/\1/p' "$release/release.json" | base64 -d |
    sed -n 's/.*"version":"\([0-9.]*\)".*/\1/p')
[ -n "$version" ] || {
    echo "$release/release.json is no release record." >&2
    exit 2
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
lib=$tree/usr/lib
share=$tree/usr/share/secur-e-health
doc=$tree/usr/share/doc/secur-e-health
mkdir -p "$tree/DEBIAN" "$tree/usr/bin" "$lib/secur-e-health/bin" "$lib/systemd/system" "$lib/udev/rules.d" \
    "$lib/sysusers.d" "$lib/tmpfiles.d" "$share/payload" "$doc/examples" "$tree/usr/share/man/man8" \
    "$tree/usr/share/lintian/overrides" "$tree/etc/secur-e-health"

install -m 755 "$here/seh-agent" "$tree/usr/bin"
"$root/packaging/slot-tool/build.sh" "$lib/secur-e-health/bin/seh-slot"
cp -r "$root"/packaging/systemd/* "$lib/systemd/system"
cp "$root"/packaging/sysusers.d/*.conf "$lib/sysusers.d"
cp "$root"/packaging/tmpfiles.d/*.conf "$lib/tmpfiles.d"
cp "$root"/packaging/udev/*.rules "$lib/udev/rules.d"
# On the appliance alone: another machine of the hospital's may have a keyboard on USB.
mv "$lib/udev/rules.d/70-secur-e-health-usb.rules" "$doc/examples"
install -m 644 "$trust/release-keys.json" "$trust/release-root.json" "$share"
install -m 644 "$release/app.raw" "$release/release.json" "$share/payload"
install -m 644 "$here/agent.toml" "$here/catalog.toml" "$here/policy.toml" "$tree/etc/secur-e-health"

install -m 644 "$here/copyright" "$root/docs/technician.md" "$root/docs/steward.md" "$root/docs/errors.md" "$doc"
for statement in sbom.cdx.json provenance.json; do
    if [ -f "$release/$statement" ]; then gzip -9n <"$release/$statement" >"$doc/$statement.gz"; fi
done
gzip -9n <"$here/seh-agent.8" >"$tree/usr/share/man/man8/seh-agent.8.gz"
printf 'secur-e-health (%s) bookworm; urgency=medium\n\n  * Release %s.\n\n -- %s  %s\n' "$version" "$version" \
    "$maintainer" "$(date -Ru -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
install -m 644 "$here/lintian-overrides" "$tree/usr/share/lintian/overrides/secur-e-health"

# What has an [Install] section starts with the machine; what has none is started by another unit.
units=$lib/systemd/system
enabled=$(cd "$units" && grep -ls '^\[Install\]' seh-*.* | sort | paste -sd' ')
stopped=$(cd "$units" && grep -Ls '^\[Install\]' seh-*.* | grep -v @ | sort | paste -sd' ')
for script in preinst postinst prerm postrm; do
    sed -e "s/@VERSION@/$version/g" -e "s/@ENABLED@/$enabled/g" -e "s/@STOPPED@/$stopped/g" \
        -e "s/@SYSUSERS@/$(cd "$lib/sysusers.d" && ls | paste -sd' ')/" \
        -e "s/@TMPFILES@/$(cd "$lib/tmpfiles.d" && ls | paste -sd' ')/" "$here/$script" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
done
printf '/etc/secur-e-health/%s.toml\n' agent catalog policy >"$tree/DEBIAN/conffiles"
sed -e "s/@VERSION@/$version/" -e "s/@MAINTAINER@/$maintainer/" \
    -e "s/@SIZE@/$(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)/" "$here/control" >"$tree/DEBIAN/control"
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"

find "$tree" -print0 | xargs -0 touch -h -d "@$SOURCE_DATE_EPOCH"
mkdir -p "$out"
# The payload, nearly all of it, is compressed already; Debian 12's own checks know no zstd here.
dpkg-deb --root-owner-group -Zgzip -z1 --build "$tree" "$out/secur-e-health_${version}_amd64.deb" >/dev/null

#!/bin/sh
# Makes an appliance of an installed system: nobody can log in, and what only a package manager needs is gone.
# Usage: settle.sh TREE VERSION
set -eu
tree=$1
version=$2
units=$tree/usr/lib/systemd/system

want() { # TARGET UNIT KIND
    mkdir -p "$units/$1.$3"
    ln -sf "../$2" "$units/$1.$3/$2"
}
want local-fs.target var.mount wants
# systemd wants a mount's unit to be called as its path; a source's file is called as people read.
configuration='etc-secur\x2de\x2dhealth.mount'
mv "$units/configuration.mount" "$units/$configuration"
want local-fs.target "$configuration" wants
want local-fs.target srv.mount wants
want multi-user.target seh-first-release.service wants
want multi-user.target systemd-networkd.service wants
want multi-user.target systemd-resolved.service wants
want sysinit.target systemd-timesyncd.service wants
want sysinit.target systemd-repart.service wants
want boot-complete.target seh-system-good.service requires
[ ! -e "$units/seh-screen.service" ] || want multi-user.target seh-screen.service wants
ln -sf multi-user.target "$units/default.target"

# No login, and no prompt anywhere: a system that fails starts again.
for unit in getty@ serial-getty@ console-getty container-getty@ autovt@ debug-shell rescue systemd-ask-password-console \
    systemd-firstboot; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit.service"
done
for unit in getty.target ctrl-alt-del.target systemd-ask-password-console.path systemd-ask-password-wall.path \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
mkdir -p "$units/emergency.service.d"
printf '[Service]\nExecStartPre=\nExecStart=\nExecStart=/bin/sh -c "sleep 20; exec systemctl --force reboot"\n' \
    >"$units/emergency.service.d/again.conf"
sed -i 's/^root:[^:]*:/root:!*:/' "$tree/etc/shadow"
sed -i 's|^\(root:.*\):[^:]*$|\1:/usr/sbin/nologin|' "$tree/etc/passwd"
find "$tree" -xdev -type f -perm /6000 -exec chmod ug-s {} +

echo secur-e-health >"$tree/etc/hostname"
printf '127.0.0.1 localhost secur-e-health\n::1 localhost secur-e-health\n' >"$tree/etc/hosts"
: >"$tree/etc/machine-id"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
printf 'IMAGE_ID=secur-e-health\nIMAGE_VERSION=%s\n' "$version" >>"$tree/usr/lib/os-release"
mkdir -p "$tree/efi"

# /var is made anew on the data partition, by what systemd-tmpfiles knows of it.
rm -rf "$tree"/var/* "$tree"/tmp/* "$tree"/run/*
find "$tree/usr/share/doc" -mindepth 1 -maxdepth 1 ! -name secur-e-health -exec sh -c '
    for place; do find "$place" -type f ! -name copyright -delete; done' sh {} +
rm -rf "$tree"/usr/share/man/* "$tree"/usr/share/locale/* "$tree"/usr/share/info/* "$tree"/etc/cron.daily "$tree"/etc/apt

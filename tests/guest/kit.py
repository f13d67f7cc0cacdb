"""The reader of sticks as the source tree has it, in a guest that no package was installed in.

The package brings the same units and rules with the payload's Python; this brings them with Debian's, in seconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.guest.rig import Guest
from tests.guest.tree import directory_image

SOURCE = Path(__file__).resolve().parents[2]
_PLACE = "/opt/kit"
_TARGETS = {
    "systemd": "/etc/systemd/system",
    "udev": "/etc/udev/rules.d",
    "sysusers.d": "/etc/sysusers.d",
    "tmpfiles.d": "/etc/tmpfiles.d",
}
_FILES = (
    "systemd/seh-enrol-stick@.service",
    "udev/70-secur-e-health-usb.rules",
    "udev/90-secur-e-health-stick.rules",
    "sysusers.d/secur-e-health-token.conf",
    "tmpfiles.d/secur-e-health-token.conf",
)
_PROGRAM = f"""#!/bin/sh
PYTHONPATH={_PLACE}/python exec /usr/bin/python3 -c 'from agent.enrolment.stick import main; main()' "$@"
"""
_WHAT_IT_IMPORTS = """
import json, sys, agent.enrolment.stick
files = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
inside = (file.split("/site-packages/")[1] for file in files if "/site-packages/" in file)
print(json.dumps(sorted({file.split("/")[0] for file in inside})))
"""


def install_reader(guest: Guest) -> None:
    """Put reader, units and rules into a running guest, and have udev act on them."""
    with tempfile.TemporaryDirectory() as directory:
        content = Path(directory) / "content"
        _copy_python(content / "python")
        for file in _FILES:
            target = content / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SOURCE / "packaging" / file, target)
        guest.bring(directory_image(content, guest.place / "kit.img", size="160M"), _PLACE)
    guest.write("/usr/lib/secur-e-health/bin/seh-stick", _PROGRAM.encode(), mode=0o755)
    for file in _FILES:
        guest.run(f"install -D -m 644 -t {_TARGETS[file.split('/')[0]]} '{_PLACE}/{file}'")
    guest.run("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload && udevadm control --reload")
    # What a start of the machine does: each host controller is new, and so is what hangs on it.
    guest.run("udevadm trigger --action=add --subsystem-match=usb --settle")


def _copy_python(target: Path) -> None:
    program = [sys.executable, "-c", _WHAT_IT_IMPORTS]
    names = json.loads(subprocess.run(program, cwd=SOURCE, capture_output=True, check=True).stdout)
    (packages,) = {path for path in map(Path, sys.path) if path.name == "site-packages"}
    forgotten = shutil.ignore_patterns("__pycache__", "tests")
    shutil.copytree(SOURCE / "agent", target / "agent", ignore=forgotten)
    for name in names:
        source = packages / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=forgotten)
        else:
            shutil.copyfile(source, target / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(target)], check=True)

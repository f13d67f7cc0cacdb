#!/bin/sh
# Makes the slot tool: one file that Debian 12's own Python runs, without anything of ours beside it.
# Usage: build.sh OUTPUT
set -eu
output=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-315532800}"

# The same bytes from the same sources: sorted names, one time, one mode, nothing compressed, no byte code.
exec /usr/bin/python3 -I - "$root" "$output" <<'PYTHON'
import os, stat, sys, time, zipfile
from pathlib import Path

root, output = Path(sys.argv[1]), Path(sys.argv[2])
modules = [
    *("agent", "agent.core", "agent.core.errors", "agent.core.files", "agent.statements", "agent.statements.release"),
    *("agent.update", "agent.update.floor", "agent.update.handover", "agent.update.installer", "agent.update.programs"),
    *("agent.update.release", "agent.update.slots", "agent.update.state", "agent.update.store", "agent.update.tool"),
    *("agent.update.trial", "agent.update.volatile", "agent.update.window"),
]
files = {"__main__.py": b"import sys\nfrom agent.update.tool import main\nsys.exit(main())\n"}
for module in modules:
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    files[str(path.relative_to(root))] = path.read_bytes()
moment = time.gmtime(max(int(os.environ["SOURCE_DATE_EPOCH"]), 315532800))[:6]
output.parent.mkdir(parents=True, exist_ok=True)
with open(output, "wb") as stream:
    stream.write(b"#!/usr/bin/python3 -I\n")
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, moment)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3
            archive.writestr(entry, files[name])
output.chmod(0o755)
PYTHON

"""The slot tool as it is installed: one file, Debian's own Python, the real veritysetup, a TPM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.update.handover import Handover, leave_handover
from agent.update.state import Phase
from tests.simulators.releases import Publisher
from tests.simulators.slots import SlotBox, make_release
from tests.simulators.swtpm import Swtpm, shared_maker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = ("--ready-s", "20", "--well-s", "0", "--deadline-s", "100")


@pytest.fixture(scope="module")
def seh_slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the package holds."""
    return build(tmp_path_factory.mktemp("bin") / "seh-slot")


@pytest.fixture(scope="module")
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as made:
        yield made


def build(output: Path) -> Path:
    subprocess.run((str(ROOT / "packaging/slot-tool/build.sh"), str(output)), check=True)
    return output


class InstalledBox(SlotBox):
    """A box on which the tool itself is run, in another process, with nothing of ours beside it."""

    def __init__(self, root: Path, seh_slot: Path, tpm: Swtpm | None) -> None:
        super().__init__(root, Publisher())
        self.seh_slot = seh_slot
        self.environment = {"PATH": os.environ["PATH"]} | ({"TPM2TOOLS_TCTI": tpm.tcti} if tpm else {})
        (root / "usr/share/secur-e-health/release-keys.json").write_bytes(self.publisher.keys_file)

    @property
    def volatile(self) -> Path:
        return self.root / "run/secur-e-health/slots"

    @property
    def health(self) -> Path:
        return self.root / "run/secur-e-health/agent/health.json"

    def run(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            (str(self.seh_slot), "--root", str(self.root), *arguments),
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.root,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def ask(self, version: str, action: str = "install") -> None:
        assert action in {"install", "rollback"}
        leave_handover(self.incoming, Handover("install" if action == "install" else "rollback", version))

    @property
    def state(self) -> dict[str, object]:
        return dict(json.loads((self.volatile / "status.json").read_bytes()))

    def verify(self, slot: str, version: str) -> int:
        """What veritysetup says of a slot, asked by somebody else."""
        files = [str(self.slots / slot / name) for name in ("app.raw", "app.verity")]
        root_hash = make_release(version)[0].root_hash
        return subprocess.run(("veritysetup", "verify", *files, root_hash), check=False, capture_output=True).returncode


@pytest.fixture
def box(tmp_path: Path, seh_slot: Path, tpm: Swtpm) -> InstalledBox:
    """Runs 1.4.0, which its package brought."""
    box = InstalledBox(tmp_path / "root", seh_slot, tpm)
    box.ship("1.4.0")
    box.run("init")
    box.run("activate")
    return box


def test_it_is_one_file_for_debian_s_python_and_the_same_each_time(seh_slot: Path, tmp_path: Path) -> None:
    assert seh_slot.read_bytes().startswith(b"#!/usr/bin/python3 -I\n")
    assert build(tmp_path / "again").read_bytes() == seh_slot.read_bytes()
    names = zipfile.ZipFile(seh_slot).namelist()
    assert all(name.startswith("agent/") or name == "__main__.py" for name in names)


def test_it_loads_nothing_but_the_standard_library_cryptography_and_itself(seh_slot: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(seh_slot)!r}); before = set(sys.modules); import agent.update.tool\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run(("/usr/bin/python3", "-I", "-c", code), check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"agent", "cryptography", "_cffi_backend", "__mp_main__"}
    assert sys.version_info >= (3, 11)


def test_an_update_from_asking_to_commit(box: InstalledBox) -> None:
    box.deliver("1.5.0")
    box.report("1.4.0")
    box.ask("1.5.0")
    box.run("install")
    assert not (box.incoming / "ready").exists()
    assert json.loads((box.volatile / "answer.json").read_bytes())["code"] is None
    assert (box.state["phase"], box.state["tpm"]) == (Phase.TRIAL, "in use")
    assert "1.5.0" in box.run("activate")
    assert box.verify("b", "1.5.0") == 0
    box.run("confirm", *QUICK, status=3)
    box.report("1.5.0")
    assert "commit" in box.run("confirm", *QUICK)
    assert (box.state["phase"], box.state["good"]) == (Phase.STEADY, "b")
    box.run("confirm", status=3)
    box.run("init", status=3)


def test_a_release_that_ends_at_each_start_is_given_up(box: InstalledBox) -> None:
    box.deliver("1.5.0")
    box.ask("1.5.0")
    box.run("install")
    started = [box.run("activate").split()[1] for _ in range(4)]
    assert started == ["1.5.0,"] * 3 + ["1.4.0,"]
    assert (box.state["phase"], box.state["failed"]) == (Phase.STEADY, "1.5.0")


def test_a_damaged_slot_is_left(box: InstalledBox) -> None:
    box.deliver("1.5.0")
    box.ask("1.5.0")
    box.run("install")
    box.run("activate")
    box.report("1.5.0")
    assert "commit" in box.run("confirm", *QUICK)
    box.run("fail", status=3)
    with (box.slots / "b/app.raw").open("r+b") as image:
        image.seek(20000)
        image.write(b"damaged")
    assert box.verify("b", "1.5.0") != 0
    box.run("fail")
    assert "1.4.0" in box.run("activate")


def test_what_is_refused_says_why_and_asks_no_more(box: InstalledBox) -> None:
    box.deliver("1.3.0")
    box.ask("1.3.0")
    assert "update.wrong_release" in box.run("install", status=1)
    assert json.loads((box.volatile / "answer.json").read_bytes())["code"] == "update.wrong_release"
    box.run("install", status=3)
    (box.incoming / "ready").write_text("{")
    assert "update.bad_request" in box.run("install", status=1)
    box.ask("1.9.0")
    assert "update.disk_failed" in box.run("install", status=1)
    box.run("nonsense", status=2)


def test_a_person_goes_back(box: InstalledBox) -> None:
    box.deliver("1.5.0")
    box.ask("1.5.0")
    box.run("install")
    box.run("activate")
    box.run("rollback")
    assert "1.4.0" in box.run("activate")
    assert "update.wrong_release" in box.run("rollback", "--version", "1.3.0", status=1)
    assert json.loads(box.run("status"))["current"] == "a"


def test_slots_keep_their_space_and_the_image_its_size(box: InstalledBox) -> None:
    release, image = make_release("1.4.0")
    path = box.slots / "a/app.raw"
    assert path.read_bytes() == image
    for name in ("a", "b"):
        assert (box.slots / name / "app.raw").stat().st_blocks * 512 >= release.image_bytes * 3 // 2
    box.deliver("1.5.0")
    box.ask("1.5.0")
    box.run("install")
    assert (box.slots / "b/app.raw").stat().st_blocks * 512 >= release.image_bytes * 3 // 2


def test_what_others_may_read(box: InstalledBox) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in box.slots.iterdir() if not path.is_symlink()}
    assert (modes["key"], modes["state.json"], modes["lock"], modes["a"]) == (0o600, 0o600, 0o600, 0o755)
    assert (box.slots / "a/app.raw").stat().st_mode & 0o777 == 0o644


def test_a_box_without_a_tpm_says_so(tmp_path: Path, seh_slot: Path) -> None:
    box = InstalledBox(tmp_path / "root", seh_slot, None)
    box.ship("1.4.0")
    box.run("activate")
    assert (json.loads(box.run("status"))["tpm"], box.state["current"]) == ("absent", "a")

"""A token's code held into a camera that speaks V4L2 by the kernel's own header."""

from __future__ import annotations

import io
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.enrolment.camera import FrameFormat, parse_frame, token_from_camera
from agent.enrolment.qr import Picture
from tests.simulators.stick import find_tool
from tests.unit.enrolment.test_qr import ASKEW, TEXT, blurred, drawn, noisy, photographed

ROOT = Path(__file__).parents[3]
DESK: Picture = np.full((720, 1280), 130, np.uint8)
CODE = noisy(blurred(photographed(drawn(), ASKEW), 1.0), 6)
LOOK = """
import json, sys
from pathlib import Path
from agent.core.clock import SystemClock
from agent.core.errors import SecureHealthError
from agent.enrolment.camera import token_from_camera
try:
    text, code = token_from_camera(Path(sys.argv[1]), SystemClock(), limit_s=float(sys.argv[2])), ""
except SecureHealthError as error:
    text, code = "", error.code
print(json.dumps([text, code]))
"""


@dataclass(frozen=True)
class PlayedCamera:
    """A camera that shows pictures, one after the other and again.

    Args:
        place: For its files.
        library: Preloaded, it is the driver.
    """

    place: Path
    library: Path

    def look(self, shown: Sequence[bytes], *, code: str, row: int, limit_s: float = 20, **more: int) -> list[str]:
        """What a process with this camera reads: the token, and the failure's code."""
        longest = max(map(len, shown))
        stride = -(-longest // mmap.PAGESIZE) * mmap.PAGESIZE
        (self.place / "video0").write_bytes(b"".join(frame.ljust(stride, b"\0") for frame in shown))
        facts = {"width": 1280, "height": 720, "frames": len(shown), "stride": stride, "bytes": longest, "row": row}
        told = {f"CAMERA_{name.upper()}": str(value) for name, value in (facts | more).items()}
        done = subprocess.run(
            [sys.executable, "-c", LOOK, str(self.place / "video0"), str(limit_s)],
            env=os.environ | told | {"CAMERA_CODE": code, "LD_PRELOAD": str(self.library)},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        text, failure = json.loads(done.stdout)
        return [text, failure]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("camera") / "camera.so"
    source = ROOT / "tests" / "simulators" / "camera.c"
    build = (find_tool("gcc"), "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(made), str(source), "-ldl")
    subprocess.run(build, check=True)
    return made


@pytest.fixture
def camera(tmp_path: Path, library: Path) -> PlayedCamera:
    return PlayedCamera(tmp_path, library)


def yuyv(picture: Picture, padding: int = 0) -> bytes:
    rows = np.full((picture.shape[0], 2 * picture.shape[1] + padding), 128, np.uint8)
    rows[:, : 2 * picture.shape[1] : 2] = picture
    return rows.tobytes()


def jpeg(picture: Picture) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(out, "JPEG", quality=70)
    return out.getvalue()


@pytest.mark.parametrize(
    ("code", "frame", "row"),
    [
        ("YUYV", yuyv(CODE), 2560),
        ("YUYV", yuyv(CODE, padding=64), 2624),
        ("GREY", CODE.tobytes(), 1280),
        ("GREY", CODE.tobytes(), 0),
        ("NV12", CODE.tobytes() + bytes([128]) * (1280 * 360), 1280),
        ("MJPG", jpeg(CODE), 0),
    ],
    ids=["YUYV", "YUYV with padding", "GREY", "GREY without row length", "NV12", "MJPG"],
)
def test_a_code_is_seen_in_every_kind_of_frame(camera: PlayedCamera, code: str, frame: bytes, row: int) -> None:
    assert camera.look([frame], code=code, row=row) == [TEXT, ""]


def test_the_camera_waits_for_the_code(camera: PlayedCamera) -> None:
    assert camera.look([yuyv(DESK), yuyv(CODE)], code="YUYV", row=2560) == [TEXT, ""]


def test_damaged_frames_are_passed_over(camera: PlayedCamera) -> None:
    whole = jpeg(CODE)
    assert camera.look([whole[:200].ljust(len(whole), b"\0"), whole], code="MJPG", row=0) == [TEXT, ""]


def test_nothing_shown_in_time(camera: PlayedCamera) -> None:
    assert camera.look([yuyv(DESK)], code="YUYV", row=2560, limit_s=0.2) == ["", "code.none_shown"]


@pytest.mark.parametrize(
    ("code", "facts"),
    [
        ("H264", {}),
        ("YUYV", {"row": 1280}),
        ("YUYV", {"width": 0}),
        ("YUYV", {"width": 100_000, "row": 200_000}),
        ("YUYV", {"row": 1 << 31}),
        ("YUYV", {"frames": 0}),
        ("YUYV", {"length": 1 << 31}),
        ("YUYV", {"index": 7}),
        ("YUYV", {"unplugged_after": 2}),
    ],
    ids=str,
)
def test_a_camera_that_cannot_be_used_or_lies(camera: PlayedCamera, code: str, facts: dict[str, int]) -> None:
    assert camera.look([yuyv(DESK)], code=code, **({"row": 2560} | facts)) == ["", "camera.failed"]


def test_frames_shorter_than_they_should_be_are_none() -> None:
    assert parse_frame(bytes(100), FrameFormat(int.from_bytes(b"GREY", "little"), 20, 10, 20)) is None


def test_no_camera_is_said(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        token_from_camera(tmp_path / "video0", SystemClock(), limit_s=1)
    assert caught.value.code == "camera.missing"

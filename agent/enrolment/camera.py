"""A token's code held into a camera: frames from Video4Linux, until one shows it.

Source: the Linux kernel's Video for Linux API (V4L2), single-planar capture with memory-mapped buffers;
include/uapi/linux/videodev2.h for layouts and request codes (64-bit).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from agent.core.clock import Clock
from agent.core.errors import HardwareError, OperatorError
from agent.enrolment.qr import Picture, parse_picture, tokens_in

DEFAULT_CAMERA: Final = Path("/dev/video0")
WISHED_WIDTH, WISHED_HEIGHT = 1280, 720
MAX_SIDE: Final = 4096
MAX_FRAME_BYTES: Final = 32 << 20
FRAME_LIMIT_S: Final = 5.0
"""How long a camera may take for one frame."""

_BUFFERS: Final = 2
_CAPTURE, _MMAP = 1, 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE, V4L2_MEMORY_MMAP
_FORMAT: Final = struct.Struct("<I4x7I172x")  # v4l2_format with v4l2_pix_format up to colorspace
_REQUEST: Final = struct.Struct("<5I")  # v4l2_requestbuffers
_BUFFER: Final = struct.Struct("<5I4x16x16xIIQI12x")  # v4l2_buffer
_S_FMT, _REQBUFS, _QUERYBUF, _QBUF, _DQBUF = 0xC0D05605, 0xC0145608, 0xC0585609, 0xC058560F, 0xC0585611
_STREAMON, _STREAMOFF = 0x40045612, 0x40045613
_YUYV, _GREY, _NV12, _MJPEG = (int.from_bytes(name, "little") for name in (b"YUYV", b"GREY", b"NV12", b"MJPG"))
_BYTES_PER_PIXEL: Final = {_YUYV: 2, _GREY: 1, _NV12: 1}


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What a camera's frames are.

    Args:
        code: Four characters, little-endian, as the kernel has it.
        width: In pixels.
        height: In pixels.
        row_bytes: From one row of brightness to the next.
    """

    code: int
    width: int
    height: int
    row_bytes: int


def token_from_camera(path: Path, clock: Clock, *, limit_s: float) -> str:
    """Watch until the camera sees one token's code.

    Args:
        path: `/dev/video0`.
        clock: For the limit.
        limit_s: How long to watch.

    Raises:
        OperatorError: No camera is there (`camera.missing`), or no code was shown in time (`code.none_shown`).
        HardwareError: The camera does not work (`camera.failed`), or has no frames that can be used.
    """
    end_s = clock.monotonic_s() + limit_s
    with open_camera(path) as frames:
        for picture in frames:
            found = [] if picture is None else tokens_in(picture)
            if len(found) == 1:
                return found[0]
            if clock.monotonic_s() >= end_s:
                break
    raise OperatorError(
        "code.none_shown",
        "No enrolment code was seen.",
        next_step="Hold the code flat before the camera, a hand's breadth away, in good light; then try again.",
    )


@contextmanager
def open_camera(path: Path) -> Iterator[Iterator[Picture | None]]:
    """Frames of a camera for as long as the block lasts; None for each that cannot be used.

    Raises:
        OperatorError: No camera is there.
        HardwareError: It does not work.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorError(
            "camera.missing",
            f"There is no camera at {path} that may be used: {error.strerror}.",
            next_step="Plug a camera in, or use a stick or a picture of the code instead.",
        ) from error
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            frame_format = _choose_format(descriptor)
            buffers = _map_buffers(descriptor, stack)
            _control(descriptor, _STREAMON, struct.pack("<i", _CAPTURE))
        except OSError as error:
            raise _failed(error.strerror or "it does not answer") from error
        stack.callback(_stop, descriptor)
        yield _frames(descriptor, frame_format, buffers)


def parse_frame(data: bytes, frame_format: FrameFormat) -> Picture | None:
    """The brightness of one frame; None for one that arrived damaged, as cameras' frames do now and then."""
    if frame_format.code == _MJPEG:
        with suppress(OperatorError):
            return parse_picture(data)
        return None
    needed = frame_format.row_bytes * frame_format.height
    if len(data) < needed:
        return None
    rows = np.frombuffer(data, np.uint8, needed).reshape(frame_format.height, frame_format.row_bytes)
    step = _BYTES_PER_PIXEL[frame_format.code]
    return np.ascontiguousarray(rows[:, : frame_format.width * step : step])


def _choose_format(descriptor: int) -> FrameFormat:
    # The driver answers with the nearest that it has, which may be another kind of frame.
    wish = _FORMAT.pack(_CAPTURE, WISHED_WIDTH, WISHED_HEIGHT, _YUYV, 0, 0, 0, 0)
    _, width, height, code, _, row_bytes, _, _ = _FORMAT.unpack(_control(descriptor, _S_FMT, wish))
    if code not in {*_BYTES_PER_PIXEL, _MJPEG}:
        raise _failed("it has no kind of frame that is understood here")
    row_bytes = row_bytes or width * _BYTES_PER_PIXEL.get(code, 0)
    fits = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE
    if not fits or row_bytes * height > MAX_FRAME_BYTES or row_bytes < width * _BYTES_PER_PIXEL.get(code, 0):
        raise _failed("the size of its frames is not sensible")
    return FrameFormat(code, width, height, row_bytes)


def _map_buffers(descriptor: int, stack: ExitStack) -> list[mmap.mmap]:
    asked = _REQUEST.pack(_BUFFERS, _CAPTURE, _MMAP, 0, 0)
    count, *_ = _REQUEST.unpack(_control(descriptor, _REQBUFS, asked))
    if count < 1:
        raise _failed("it gives no memory for frames")
    buffers = []
    for index in range(min(count, _BUFFERS)):
        *_, offset, length = _BUFFER.unpack(_control(descriptor, _QUERYBUF, _buffer(index)))
        if not 0 < length <= MAX_FRAME_BYTES:
            raise _failed("the size of its frames is not sensible")
        buffers.append(stack.enter_context(mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=offset)))
        _control(descriptor, _QBUF, _buffer(index))
    return buffers


def _frames(descriptor: int, frame_format: FrameFormat, buffers: list[mmap.mmap]) -> Iterator[Picture | None]:
    while True:
        if not select.select([descriptor], [], [], FRAME_LIMIT_S)[0]:
            raise _failed("it sends no pictures")
        try:
            index, _, used, *_ = _BUFFER.unpack(_control(descriptor, _DQBUF, _buffer(0)))
            data = buffers[index][:used]
            _control(descriptor, _QBUF, _buffer(index))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                yield None
                continue
            raise _failed(error.strerror or "it does not answer") from error
        except IndexError:
            raise _failed("it names a frame that there is not") from None
        yield parse_frame(data, frame_format)


def _buffer(index: int) -> bytes:
    return _BUFFER.pack(index, _CAPTURE, 0, 0, 0, 0, _MMAP, 0, 0)


def _control(descriptor: int, request: int, argument: bytes) -> bytes:
    return fcntl.ioctl(descriptor, request, argument)


def _stop(descriptor: int) -> None:
    with suppress(OSError):
        _control(descriptor, _STREAMOFF, struct.pack("<i", _CAPTURE))


def _failed(what: str) -> HardwareError:
    return HardwareError(
        "camera.failed",
        f"The camera does not work: {what}.",
        next_step="Plug it in again, or use a stick or a picture of the code instead.",
    )

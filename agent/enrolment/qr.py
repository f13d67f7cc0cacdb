"""Codes: a token read from a picture, and what the box itself shows for a phone to read."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.core.errors import OperatorError
from agent.trust.token import PREFIX

try:
    import segno
    import zxingcpp
    from PIL import Image
except ImportError as missing:
    raise OperatorError(
        "code.missing_library",
        f"Codes need a library that is not installed here ({missing.name}).",
        next_step="Install the package's 'enrol' extra, or bring the token on a stick.",
    ) from missing

MAX_PIXELS: Final = 64 << 20
_FAMILY: Final = PREFIX[:3]
_FORMATS: Final = zxingcpp.BarcodeFormats(zxingcpp.BarcodeFormat.QRCode)

Picture = NDArray[np.uint8]
"""(height, width), grey: 0 is black."""


def parse_picture(data: bytes) -> Picture:
    """Decode a picture.

    Args:
        data: PNG or JPEG.

    Raises:
        OperatorError: It is neither, is damaged, or has more than 64 million pixels (`code.not_a_picture`).
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _not_a_picture("it has too many pixels")
            return np.asarray(_on_white(image) if image.has_transparency_data else image.convert("L"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _not_a_picture("it has too many pixels") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _not_a_picture("it is no PNG or JPEG, or is damaged") from error


def tokens_in(picture: Picture) -> list[str]:
    """The texts of all codes in `picture` that could be tokens, each once."""
    found = zxingcpp.read_barcodes(picture, formats=_FORMATS, text_mode=zxingcpp.TextMode.Plain, try_invert=False)
    return sorted({code.text for code in found if code.text.startswith(_FAMILY)})


def terminal_code(text: str) -> str:
    """A QR code of `text` in characters, for a terminal with light letters on dark ground or the other way round."""
    out = io.StringIO()
    segno.make_qr(text, error="m").terminal(out, compact=True)
    return out.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    """A code drawn on nothing is meant for paper."""
    paper = Image.new("L", image.size, 255)
    paper.paste(image.convert("L"), mask=image.convert("RGBA").getchannel("A"))
    return paper


def _not_a_picture(what: str) -> OperatorError:
    return OperatorError(
        "code.not_a_picture",
        f"The picture cannot be used: {what}.",
        next_step="Take a photograph of the code as JPEG or PNG.",
    )

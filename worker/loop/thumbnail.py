"""A small picture of what a training has learned, for the header of its files."""

import base64
import io
from pathlib import Path

from PIL import Image

SIDE_PX = 256
"""ModelSpec's recommendation, https://github.com/Stability-AI/ModelSpec."""

MAX_BYTES = 24 * 1024
"""Of the JPEG: a photograph of that size in good quality. Base64 makes four bytes of three."""

_QUALITIES = (85, 75, 60, 45, 30)


def thumbnail_of(picture: Path) -> str | None:
    """A JPEG of `picture`, no side over SIDE_PX and no longer than MAX_BYTES, in base64; None if none is so small."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= MAX_BYTES:
            return base64.b64encode(stream.getvalue()).decode()
    return None

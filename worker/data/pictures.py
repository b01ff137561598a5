"""Opens a picture file as upright RGB, or says what is wrong with it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from worker.errors import DatasetInvalid

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
UNREAD_ENDINGS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl")  # pictures, but of no format read here

PIXEL_LIMIT = 80_000_000
"""More than any camera; a small file that unpacks to more would take the machine's memory. Under Pillow's own limit."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_SEVERAL_VIEWS = "MPO"  # a JPEG with further views behind the first, as some phones make; Pillow opens it as such
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
_PLAIN = ("1", "L", "P", "RGB", "YCbCr", "CMYK")
_TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")


@dataclass(frozen=True)
class OpenedPicture:
    image: Image.Image
    """8-bit RGB, turned upright as EXIF says."""

    notes: tuple[str, ...]
    """What was changed besides, in words that go on after "3 pictures "."""

    alpha: Image.Image | None = None
    """8-bit grey, how opaque it is, if it is not so everywhere."""


def open_picture(path: Path) -> OpenedPicture:
    """Decode a picture whole.

    Grey is spread to RGB, 16 bit are reduced to 8, CMYK is converted, transparency is laid on white.

    Raises:
        DatasetInvalid: too large, animated, truncated, or of a format or mode not read here. The message does not name
            the file: the caller knows the name that the person knows.
    """
    with _as_faults(), Image.open(path, formats=_FORMATS) as image:
        pixels = image.width * image.height
        if pixels > PIXEL_LIMIT:
            raise DatasetInvalid(f"has {pixels:,} pixels, more than {PIXEL_LIMIT:,}: make it smaller")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != _SEVERAL_VIEWS:
            raise DatasetInvalid(f"is animated ({frames} frames): save the frame you want as a still picture")
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright)


@contextmanager
def _as_faults() -> Iterator[None]:
    """Whatever a decoder raises on bytes from strangers becomes a fault of that one picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slightly broken EXIF; what matters raises
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (DatasetInvalid, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetInvalid(f"has more than {PIXEL_LIMIT:,} pixels: make it smaller") from error
    except Exception as error:
        raise DatasetInvalid(f"cannot be decoded ({error}): export it again, or remove it") from error


def _to_rgb(image: Image.Image) -> OpenedPicture:
    if image.mode in _GREY_16:
        values = np.asarray(image).astype(np.uint32)  # [h, w], 0..65535
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return OpenedPicture(Image.fromarray(grey).convert("RGB"), ("with 16 bit were reduced to 8",))
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return OpenedPicture(rgba.convert("RGB"), ())
        on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return OpenedPicture(on_white, ("with transparency were laid on white",), alpha)
    if image.mode not in _PLAIN:
        raise DatasetInvalid(f"has the colour mode {image.mode}: save it as 8-bit RGB")
    notes = ("in CMYK were converted without their colour profile",) if image.mode == "CMYK" else ()
    return OpenedPicture(image.convert("RGB"), notes)

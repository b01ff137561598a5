"""Is a picture what its caption says? Judged by colour and by outline, with no model and no learning.

The background is the most frequent colour of the border; what differs from it falls into patches; each patch is the
shape whose outline covers it best once both fill the same square.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import dist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.drawing.pictures import COLOURS, PLACES, SHAPES, Scene, draw_shape

Mask = NDArray[np.bool_]

MIN_DISTANCE = 60.0  # in RGB, from the background: half of the least distance between two colours
MIN_PATCH_PX = 60  # smaller ones are specks; the smallest shape has about 200
MIN_OVERLAP = 0.72  # intersection over union with the best outline; a circle has 0.78 with a square
_SQUARE_PX = 32  # side of the square in which outlines are compared


@dataclass(frozen=True)
class Patch:
    """One connected area that is not background."""

    colour: str
    shape: str | None  # None: like no shape there is
    middle_px: tuple[float, float]  # x, y of its bounding box


@dataclass(frozen=True)
class Verdict:
    """What of a caption is true of a picture."""

    background: bool
    colour: bool
    shape: bool
    place: bool  # in the right quarter; always where the caption says none
    count: bool

    @property
    def right(self) -> bool:
        return self.background and self.colour and self.shape and self.place and self.count


def judge(picture: Image.Image, scene: Scene) -> Verdict:
    """Compare a picture, 128 x 128 RGB, with what it should show."""
    background, patches = look(picture)
    return Verdict(
        background=background == scene.background,
        colour=bool(patches) and all(patch.colour == scene.colour for patch in patches),
        shape=bool(patches) and all(patch.shape == scene.shape for patch in patches),
        place=not scene.place or all(_nearest_place(patch) == scene.place for patch in patches),
        count=len(patches) == scene.count,
    )


def rates(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Share of pictures that are right, in all and in each respect, 0..1."""
    verdicts = list(verdicts)
    if not verdicts:
        return {}
    aspects = ("right", "background", "colour", "shape", "place", "count")
    return {aspect: sum(getattr(verdict, aspect) for verdict in verdicts) / len(verdicts) for aspect in aspects}


def look(picture: Image.Image) -> tuple[str, list[Patch]]:
    """Return the background's colour and every patch on it."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)  # [H, W, 3]
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])  # [n, 3]
    middle = np.median(border, axis=0)
    mask = np.linalg.norm(pixels - middle, axis=-1) > MIN_DISTANCE  # [H, W]
    patches = [_patch(pixels, area) for area in _areas(mask)]
    return _nearest_colour(middle), patches


def _areas(mask: Mask) -> list[Mask]:
    """Split a mask into its connected areas, specks left out. Every pixel takes the highest label it can reach."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        around = np.pad(labels, 1)
        highest = np.maximum.reduce([around[1:-1, 1:-1], around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2]])
        spread = np.where(mask, np.maximum(highest, around[1:-1, 2:]), 0)
        if (spread == labels).all():
            break
        labels = spread
    sizes = Counter(labels[mask].tolist())
    return [labels == label for label, size in sorted(sizes.items()) if size >= MIN_PATCH_PX]


def _patch(pixels: NDArray[np.float32], area: Mask) -> Patch:
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = area[top:bottom, left:right]
    overlaps = {shape: _overlap(_in_square(cut), outline) for shape, outline in _outlines().items()}
    shape = max(overlaps, key=lambda shape: overlaps[shape])
    is_square = 0.7 < (right - left) / (bottom - top) < 1.43  # two shapes that touch make one long patch
    return Patch(
        colour=_nearest_colour(np.median(pixels[area], axis=0)),
        shape=shape if is_square and overlaps[shape] >= MIN_OVERLAP else None,
        middle_px=((left + right) / 2, (top + bottom) / 2),
    )


@cache
def _outlines() -> dict[str, Mask]:
    """Every shape, filling the square."""
    outlines = {}
    for shape in SHAPES:
        mask = Image.new("L", (4 * _SQUARE_PX,) * 2)
        draw_shape(ImageDraw.Draw(mask), shape, 2 * _SQUARE_PX, 2 * _SQUARE_PX, 2 * _SQUARE_PX - 1)
        outlines[shape] = _in_square(np.asarray(mask.crop(mask.getbbox())) > 127)
    return outlines


def _in_square(mask: Mask) -> Mask:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((_SQUARE_PX, _SQUARE_PX), Image.Resampling.BOX)) > 127


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _nearest_colour(rgb: NDArray[np.float32]) -> str:
    return min(COLOURS, key=lambda name: dist(COLOURS[name], rgb.tolist()))


def _nearest_place(patch: Patch) -> str:
    corners = {place: middle for place, middle in PLACES.items() if place}
    return min(corners, key=lambda place: dist(corners[place], patch.middle_px))

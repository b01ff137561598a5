"""What the drawing model knows: flat shapes on flat backgrounds, each with a caption that is true of it.

    python -m benchmarks.drawing.pictures FOLDER star --count 16      pictures of one shape, as a dataset

A scene is one shape once, somewhere in the middle or in a corner, or the same shape two to four times.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

SIDE_PX = 128
COLOURS = {
    "red": (214, 39, 40),
    "yellow": (248, 214, 40),
    "green": (36, 150, 64),
    "blue": (36, 84, 206),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (16, 16, 16),
}
KNOWN_SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
NEW_SHAPES = ("star",)  # never drawn for the model: what a LoRA is to teach it
SHAPES = KNOWN_SHAPES + NEW_SHAPES
PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses"}
COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}

Place = Literal["", "top left", "top right", "bottom left", "bottom right"]
PLACES: dict[Place, tuple[int, int]] = {  # middle of each place, x and y in px
    "": (64, 64),
    "top left": (32, 32),
    "top right": (96, 32),
    "bottom left": (32, 96),
    "bottom right": (96, 96),
}

_FINENESS = 4  # drawn that much larger and scaled down, for smooth edges
_GAP_PX = 6  # between two shapes
_CROSS_ARM, _RING_HOLE = 0.36, 0.55  # shares of the radius
_STAR_WAIST = 0.5  # likewise; the VAE rounds thinner ones off: at 0.42 it leaves three of four stars a star, at 0.5 all


@dataclass(frozen=True)
class Scene:
    """What is to be seen, up to where exactly and how large."""

    shape: str
    colour: str
    background: str
    place: Place = ""  # "" is the middle, of which the caption says nothing
    count: int = 1

    @property
    def caption(self) -> str:
        name = self.shape if self.count == 1 else PLURALS[self.shape]
        where = f", {self.place}" if self.place else ""
        return f"{COUNTS[self.count]} {self.colour} {name} on a {self.background} background{where}"


def all_scenes(shapes: tuple[str, ...] = KNOWN_SHAPES) -> list[Scene]:
    """Every scene of these shapes: 42 pairs of colours, times five places and three larger counts."""
    arrangements = [(place, 1) for place in PLACES] + [("", count) for count in COUNTS if count > 1]
    return [
        Scene(shape, colour, background, place, count)
        for shape in shapes
        for colour in COLOURS
        for background in COLOURS
        if colour != background
        for place, count in arrangements
    ]


def render(scene: Scene, source: random.Random) -> Image.Image:
    """Draw one picture of `scene`, 128 x 128 RGB; `source` chooses size and place within what the caption allows."""
    mask = Image.new("L", (SIDE_PX * _FINENESS,) * 2)
    draw = ImageDraw.Draw(mask)
    for x, y, radius in _arrange(scene, source):
        draw_shape(draw, scene.shape, x * _FINENESS, y * _FINENESS, radius * _FINENESS)
    mask = mask.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    picture = Image.new("RGB", mask.size, COLOURS[scene.background])
    picture.paste(COLOURS[scene.colour], mask=mask)
    return picture


def scribble(source: random.Random) -> Image.Image:
    """Draw two to four polygons of any colours on any colour: for the VAE, which is to take more than our shapes."""
    colours = [tuple(source.randrange(256) for _ in range(3)) for _ in range(source.randint(3, 5))]
    picture = Image.new("RGB", (SIDE_PX * 2,) * 2, colours[0])
    for colour in colours[1:]:
        corners = [
            (source.uniform(0, 2 * SIDE_PX), source.uniform(0, 2 * SIDE_PX)) for _ in range(source.randint(3, 6))
        ]
        ImageDraw.Draw(picture).polygon(corners, fill=colour)
    return picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float) -> None:
    """Draw `shape` in white into a black mask, within the square of that radius around (x, y)."""
    if shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = radius * _RING_HOLE
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _outline(shape)], fill=255)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape within -1..1, y downwards."""
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0, -0.95), (1, 0.85), (-1, 0.85)]
    if shape == "diamond":
        return [(0, -1), (1, 0), (0, 1), (-1, 0)]
    if shape == "cross":
        arm = _CROSS_ARM
        quarter = [(arm, -1), (arm, -arm), (1, -arm)]
        return [turned for turns in range(4) for turned in (_turn(corner, turns) for corner in quarter)]
    if shape == "star":
        radii = [1.0 if corner % 2 == 0 else _STAR_WAIST for corner in range(10)]
        return [(r * sin(corner * pi / 5), -r * cos(corner * pi / 5)) for corner, r in enumerate(radii)]
    raise ValueError(f"There is no shape {shape!r}: use one of {', '.join(SHAPES)}.")


def _turn(corner: tuple[float, float], quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        corner = (-corner[1], corner[0])
    return corner


def _arrange(scene: Scene, source: random.Random) -> list[tuple[float, float, float]]:
    """Return x, y and radius of each shape, px."""
    if scene.count > 1:
        return _scatter(scene.count, source)
    radius, shift = (source.uniform(17, 24), 6) if scene.place else (source.uniform(26, 42), 14)
    x, y = PLACES[scene.place]
    return [(x + source.uniform(-shift, shift), y + source.uniform(-shift, shift), radius)]


def _scatter(count: int, source: random.Random) -> list[tuple[float, float, float]]:
    """Shapes of one size that neither touch each other nor the border."""
    while True:
        radius = source.uniform(15, 19)
        spots: list[tuple[float, float, float]] = []
        for _ in range(100):
            x, y = (source.uniform(radius + 2, SIDE_PX - radius - 2) for _ in range(2))
            if all(max(abs(x - u), abs(y - v)) > 2 * radius + _GAP_PX for u, v, _ in spots):
                spots.append((x, y, radius))
            if len(spots) == count:
                return spots


def dataset(shape: str, count: int, seed: int) -> Iterator[tuple[Scene, Image.Image]]:
    """Draw `count` pictures of single shapes in the middle, as even over colours and backgrounds as can be."""
    source = random.Random(seed)
    pairs = [(colour, background) for colour in COLOURS for background in COLOURS if colour != background]
    source.shuffle(pairs)
    for number in range(count):
        scene = Scene(shape, *pairs[number % len(pairs)])
        yield scene, render(scene, source)


def write_dataset(folder: Path, shape: str, count: int, seed: int = 0) -> None:
    """Write `dataset` as loraq reads it: star-00.png, star-00.txt, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, picture) in enumerate(dataset(shape, count, seed)):
        picture.save(folder / f"{shape}-{number:02d}.png", optimize=True)
        (folder / f"{shape}-{number:02d}.txt").write_text(scene.caption + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw captioned pictures of one shape.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_dataset(arguments.folder, arguments.shape, arguments.count, arguments.seed)


if __name__ == "__main__":
    main()

"""What has an adapter taught the drawing model, and what has it made it forget? Draws captions without and with it.

    python -m benchmarks.drawing.exam BASE.safetensors LORA.safetensors OUT.png [--shape star]

OUT.png has four rows: the new shape before and after, known shapes before and after. Prints the rates.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.drawing.artist import Artist, sheet
from benchmarks.drawing.checker import judge, rates
from benchmarks.drawing.pictures import COLOURS, KNOWN_SHAPES, NEW_SHAPES, SHAPES, Scene
from worker.lora.merge import merge_into
from worker.model.weights import load_unet, open_base_model


def questions(shape: str, count: int) -> tuple[list[Scene], list[Scene]]:
    """`count` scenes of the new shape, and as many of known ones: every colour in turn, on ever other backgrounds."""
    colours = list(COLOURS)
    pairs = [(colours[i % 7], colours[(i + 1 + i // 7 % 6) % 7]) for i in range(count)]
    known = [Scene(KNOWN_SHAPES[i % len(KNOWN_SHAPES)], *pair) for i, pair in enumerate(pairs)]
    return [Scene(shape, *pair) for pair in pairs], known


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the same captions without and with an adapter, and judge them.")
    parser.add_argument("base", type=Path)
    parser.add_argument("lora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default=NEW_SHAPES[0])
    parser.add_argument("--count", type=int, default=14, help="pictures of the new shape, and as many of known ones")
    arguments = parser.parse_args()
    adapted = load_unet(open_base_model(arguments.base), torch.device("cpu"), torch.float32)
    merge_into(adapted, arguments.lora)
    before, after = Artist(arguments.base), Artist(arguments.base, adapted)
    rows = []
    for name, scenes in zip((arguments.shape, "known shape"), questions(arguments.shape, arguments.count), strict=True):
        drawn = [artist.draw([scene.caption for scene in scenes], seed=1) for artist in (before, after)]
        right = [rates(judge(*pair) for pair in zip(pictures, scenes, strict=True))["right"] for pictures in drawn]
        rows += [pictures[:7] for pictures in drawn]
        print(f"{name + 's drawn right':25} before {right[0]:4.0%}   after {right[1]:4.0%}   of {len(scenes)} captions")
    sheet(rows).save(arguments.out)


if __name__ == "__main__":
    main()

"""Teaches the drawing model a shape that it was never shown, and counts how often it draws it, and the others, right.

    python -m benchmarks.drawing.teach BASE.safetensors star --steps 400 --reminders 32 [--device cuda]

The training is loraq's own: its adapter, its batches, its loop. Prints one JSON line at each count of steps in --at.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from benchmarks.drawing.artist import Artist
from benchmarks.drawing.checker import rates
from benchmarks.drawing.pictures import COLOURS, KNOWN_SHAPES, SHAPES, Scene, write_dataset
from worker.data.batches import Batches, Example
from worker.data.buckets import bucket_sizes, cut_for
from worker.data.cache import Cache
from worker.data.config import DatasetConfig
from worker.data.dataset import read_dataset
from worker.data.encoding import Shot, encode_captions, encode_pictures
from worker.data.examples import view_of
from worker.loop.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from worker.loop.train import train
from worker.lora.config import LoRAConfig, Targets
from worker.lora.inject import inject
from worker.model.weights import load_unet, open_base_model

RESOLUTION = 128


@dataclass(frozen=True)
class Lesson:
    """What is taught, and how."""

    shape: str = "star"
    pictures: int = 16
    reminders: int = 0  # pictures of known shapes among them, so that these are not forgotten
    targets: Targets = "transformer"
    rank: int = 4
    alpha: float = 16.0
    learning_rate: float = 2e-3
    batch_size: int = 8
    steps: int = 400
    schedule: str = "cosine"
    dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """How well the model draws after so many steps."""

    steps: int
    new: float  # share of pictures of the new shape that are right, 0..1
    known: float  # the same of the known shapes
    loss: float
    seconds: float  # of training since the last report


def teach(
    base_path: Path, lesson: Lesson, at: set[int], device: torch.device, dtype: torch.dtype
) -> Iterator[Progress]:
    """Train an adapter on pictures of `lesson.shape`; report before the first step, and after those in `at`."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "new"), lesson.shape, lesson.pictures, lesson.seed)
        for number, shape in enumerate(KNOWN_SHAPES):
            share = len(range(number, lesson.reminders, len(KNOWN_SHAPES)))
            write_dataset(Path(folder, "known"), shape, share, seed=number + 1)
        batches = _batches(base_path, Path(folder), lesson, device, dtype)
    unet = load_unet(open_base_model(base_path), device, dtype)
    lora = inject(unet, LoRAConfig(lesson.rank, lesson.alpha, lesson.targets), lesson.seed)
    config = TrainConfig(
        lesson.steps,
        lesson.seed,
        optimizer=OptimizerConfig(learning_rate=lesson.learning_rate),
        lr_schedule=ScheduleConfig(lesson.schedule, warmup_steps=10),  # type: ignore[arg-type]
        loss=LossConfig(min_snr_gamma=5.0),
    )
    artist = Artist(base_path, unet, device)
    yield Progress(0, *_both_rates(artist, lesson.shape), float("nan"), 0.0)
    started = time.perf_counter()
    for result in train(unet, lora, batches, config):
        if result.step in at:
            seconds = time.perf_counter() - started
            yield Progress(result.step, *_both_rates(artist, lesson.shape), result.loss, seconds)
            started = time.perf_counter()


def _batches(base_path: Path, folder: Path, lesson: Lesson, device: torch.device, dtype: torch.dtype) -> Batches:
    base, cache = open_base_model(base_path), Cache(folder / "cache")
    options = DatasetConfig(str(folder))
    pictures = read_dataset(options).pictures
    cuts = [cut_for(picture.size_px, bucket_sizes(RESOLUTION)) for picture in pictures]
    shots = [Shot(picture, cut) for picture, cut in zip(pictures, cuts, strict=True)]
    latents = encode_pictures(shots, cache, base, device, dtype)
    views = [view_of(shot, each, options) for shot, each in zip(shots, latents, strict=True)]
    texts = ["", *(picture.caption for picture in pictures)]
    empty, *captions = encode_captions(texts, cache, base, device, dtype)
    examples = [Example(view, (caption,)) for view, caption in zip(views, captions, strict=True)]
    return Batches(examples, empty, lesson.batch_size, lesson.seed, lesson.dropout)


def _both_rates(artist: Artist, shape: str) -> tuple[float, float]:
    new, known = examination(shape)
    return rates(artist.judge(new))["right"], rates(artist.judge(known))["right"]


def examination(shape: str) -> tuple[list[Scene], list[Scene]]:
    """What is asked for: the new shape in every pair of colours, and every known shape in seven of them."""
    pairs = [(colour, background) for colour in COLOURS for background in COLOURS if colour != background]
    new = [Scene(shape, *pair) for pair in pairs]
    return new, [Scene(KNOWN_SHAPES[i % len(KNOWN_SHAPES)], *pair) for i, pair in enumerate(pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the drawing model a new shape.")
    parser.add_argument("base", type=Path)
    parser.add_argument("shape", choices=SHAPES, nargs="?", default="star")
    parser.add_argument("--at", type=int, nargs="*", default=[], help="report after so many steps; the last always")
    parser.add_argument("--device", default="cpu")
    for field in fields(Lesson):
        if field.name != "shape":
            parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    base, at, device = arguments.pop("base"), set(arguments.pop("at")), torch.device(arguments.pop("device"))
    lesson = Lesson(**arguments)
    for progress in teach(base, lesson, at | {lesson.steps}, device, torch.float32):
        print(json.dumps(vars(lesson) | vars(progress)), flush=True)


if __name__ == "__main__":
    main()

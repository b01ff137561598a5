"""Draws captions with a base model, many pictures at once, and with an adapter if there is one.

    python -m benchmarks.drawing.artist BASE.safetensors OUT.png "a red circle on a blue background" ...

Shapes: b pictures, h and w latent rows and columns.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.drawing.checker import Verdict, judge
from benchmarks.drawing.pictures import SIDE_PX, Scene
from worker.loop.preview import euler, to_image
from worker.model.conditioning import time_ids
from worker.model.schedule import NoiseSchedule
from worker.model.text_encoders import load_text_encoders
from worker.model.unet import UNet
from worker.model.vae import decode, load_vae
from worker.model.weights import load_unet, open_base_model
from worker.seeds import generator

STEPS, GUIDANCE = 20, 3.0
_AT_ONCE = 64  # pictures a batch


class Artist:
    """A base model that draws.

    Args:
        base_path: of the base model.
        unet: the U-Net to draw with, as one with an adapter; None loads the base model's.
        device: where to draw.
    """

    def __init__(self, base_path: Path, unet: UNet | None = None, device: torch.device | str = "cpu") -> None:
        base = open_base_model(base_path)
        self.device = torch.device(device)
        self.unet = unet or load_unet(base, device, torch.float32)
        self._vae = load_vae(base, device, torch.float32)
        self._encoders = load_text_encoders(base, device, torch.float32)
        self._schedule = NoiseSchedule(device)

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seed: int = 0) -> list[Image.Image]:
        """Draw one picture a caption; each has noise of its own, the same whenever the seed is."""
        noise = torch.randn((len(captions), 4, SIDE_PX // 8, SIDE_PX // 8), generator=generator("drawing", seed))
        pictures: list[Image.Image] = []
        for start in range(0, len(captions), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            latents = self._draw_latents(list(captions[some]), noise[some].to(self.device))  # [b, 4, h, w]
            pictures += [to_image(values) for values in decode(self._vae, latents)]
        return pictures

    def judge(self, scenes: Sequence[Scene], seed: int = 0) -> list[Verdict]:
        """Draw every scene once, and say of each picture what is right."""
        pictures = self.draw([scene.caption for scene in scenes], seed)
        return [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]

    def _draw_latents(self, captions: list[str], noise: Tensor) -> Tensor:
        count = len(captions)
        text, pooled = self._encoders.encode(captions)  # [b, 77, t], [b, p]
        empty, empty_pooled = self._encoders.encode([""])
        text, pooled = torch.cat([empty.expand_as(text), text]), torch.cat([empty_pooled.expand_as(pooled), pooled])
        size = [(SIDE_PX, SIDE_PX)] * (2 * count)
        size_ids = time_ids(size, [(0, 0)] * (2 * count), size, self.device)  # [2b, 6]

        def predict(noisy_latents: Tensor, timestep: Tensor) -> Tensor:
            prediction = self.unet(noisy_latents.repeat(2, 1, 1, 1), timestep.expand(2 * count), text, pooled, size_ids)
            without, with_caption = prediction.chunk(2)
            return without + GUIDANCE * (with_caption - without)  # [b, 4, h, w]

        return euler(predict, noise, self._schedule, STEPS)


def sheet(rows: Sequence[Sequence[Image.Image]], gap_px: int = 4) -> Image.Image:
    """Lay pictures of one size out in rows, on white."""
    step = SIDE_PX + gap_px
    paper = Image.new("RGB", (max(map(len, rows)) * step + gap_px, len(rows) * step + gap_px), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            paper.paste(picture, (column * step + gap_px, row * step + gap_px))
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw captions with a base model.")
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("captions", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pictures = Artist(arguments.base).draw(arguments.captions, arguments.seed)
    sheet([pictures[start : start + 8] for start in range(0, len(pictures), 8)]).save(arguments.out)


if __name__ == "__main__":
    main()

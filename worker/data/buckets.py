"""Bucket sizes: which rectangle a picture is trained at, and how it is cut to it.

Sizes in code are (width, height) in px, as PIL has them; SDXL's time_ids want (height, width).

Source: Podell et al. 2023, SDXL, https://arxiv.org/abs/2307.01952, section 2.2 (crop conditioning), section 2.3 and
appendix I (about the same area at every aspect ratio, sides in steps of 64 from half to twice the resolution).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worker.model.conditioning import time_ids

Size = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """How one picture becomes one training picture: resized to cover its bucket size, then cut from the middle."""

    original_px: Size  # of the upright picture
    resized_px: Size  # covers bucket_px
    left_px: int  # of the crop, within the resized picture
    top_px: int
    bucket_px: Size

    @property
    def enlarged(self) -> bool:
        """The picture is smaller than what it is trained at, so that it is trained blurred."""
        return self.resized_px[0] > self.original_px[0]

    def mirrored(self) -> "Cut":
        """The same part of the mirrored picture."""
        return replace(self, left_px=self.resized_px[0] - self.bucket_px[0] - self.left_px)

    def time_ids(self) -> Tensor:
        """What the U-Net is told of it: [6], float32."""
        (width, height), (bucket_width, bucket_height) = self.original_px, self.bucket_px
        return time_ids((height, width), (self.top_px, self.left_px), (bucket_height, bucket_width))


def bucket_sizes(resolution: int, step_px: int | None = None) -> list[Size]:
    """All bucket sizes for a resolution, in steps of 64 or 32 px, and no more area than its square.

    Sides lie between half and twice the resolution.

    Args:
        resolution: side of the square in px.
        step_px: 64 or 32; None takes 64 from 512 px up, if the resolution is a multiple of it, and else 32.

    Raises:
        ValueError: the resolution is no multiple of the step.
    """
    step = step_px or (64 if resolution >= 512 and resolution % 64 == 0 else 32)
    if resolution < step or resolution % step:
        raise ValueError(
            f"resolution is {resolution}, but must be a multiple of {step}: use {max(step, resolution // step * step)}."
        )
    shortest = math.ceil(resolution / 2 / step) * step
    sizes: set[Size] = set()
    for side in range(shortest, resolution + 1, step):
        other = min(resolution**2 // side // step * step, 2 * resolution)
        sizes |= {(side, other), (other, side)}
    return sorted(sizes)


def cut_for(picture_px: Size, sizes: list[Size]) -> Cut:
    """Choose the bucket size of the closest aspect ratio, the larger one of equals, and cut from the middle."""
    width, height = picture_px

    def distance(size: Size) -> tuple[float, int]:
        return abs(math.log(size[0] / size[1] * height / width)), -size[0] * size[1]

    bucket = min(sizes, key=distance)
    scale = max(bucket[0] / width, bucket[1] / height)
    resized = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    return Cut(picture_px, resized, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2, bucket)


def pixel_values(image: Image.Image, cut: Cut) -> Tensor:
    """Resize and cut an RGB picture: [3, h, w], float32, -1..1."""
    values = np.asarray(cut_out(image, cut, Image.Resampling.LANCZOS), dtype=np.float32)  # [h, w, 3]
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def cut_out(image: Image.Image, cut: Cut, resample: Image.Resampling) -> Image.Image:
    """Resize and cut a picture of the cut's original size.

    Only what stays is resized: a strip of 20 x 20,000 px would not fit in memory at the size that covers its bucket.
    """
    (width, height), left, top = cut.bucket_px, cut.left_px, cut.top_px
    scale_x, scale_y = cut.original_px[0] / cut.resized_px[0], cut.original_px[1] / cut.resized_px[1]
    right = min((left + width) * scale_x, cut.original_px[0])  # which rounding may exceed
    bottom = min((top + height) * scale_y, cut.original_px[1])
    box = (left * scale_x, top * scale_y, right, bottom)  # in original px
    return image.resize(cut.bucket_px, resample, box=box)

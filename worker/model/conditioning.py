"""SDXL's size conditioning: six numbers that tell the U-Net what became of the picture on its way to the batch.

Source: Podell et al. 2023, "SDXL" (arXiv:2307.01952), section 2.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Pair = tuple[int, int]


def time_ids(
    original_size_px: Pair | Sequence[Pair],
    crop_top_left_px: Pair | Sequence[Pair],
    target_size_px: Pair | Sequence[Pair],
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the size conditioning, FP32: [6] of one picture, [b, 6] of a batch (a sequence for each argument).

    Args:
        original_size_px: (height, width) of the picture before any resizing.
        crop_top_left_px: (top, left) of the crop, in pixels of the resized picture.
        target_size_px: (height, width) of the crop, which is what the U-Net sees.
        device: where the result lies.

    Raises:
        ValueError: the sequences differ in length, or an entry is not a pair.
    """
    parts = [
        torch.as_tensor(pairs, dtype=torch.float32) for pairs in (original_size_px, crop_top_left_px, target_size_px)
    ]  # 3 times [2] or [b, 2]
    shapes = [tuple(part.shape) for part in parts]
    if len(set(shapes)) > 1 or shapes[0][-1:] != (2,) or len(shapes[0]) > 2:
        raise ValueError(f"Sizes and crop must be pairs (height, width), as many of each; their shapes are {shapes}.")
    return torch.cat(parts, dim=-1).to(device)  # [6] or [b, 6]

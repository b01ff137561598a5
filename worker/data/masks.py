"""What of a picture is learned: a mask from its alpha channel, or a picture of the same name in the folder `masks`.

White (opaque) is learned, black (transparent) is not, grey is learned in part. Shapes: h and w of the latents.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from worker.data.buckets import Cut, cut_out
from worker.data.pictures import open_picture
from worker.errors import DatasetInvalid

LATENT_SIDE_PX = 8  # picture pixels a latent


@dataclass(frozen=True)
class Mask:
    """Where a picture's mask is."""

    path: Path  # for an alpha channel, of the picture itself
    sha256: str  # of the file's bytes
    alpha: bool

    def open(self) -> Image.Image:
        """The mask, 8-bit grey, upright. Raises DatasetInvalid as open_picture does, and for one with transparency."""
        opened = open_picture(self.path)
        if self.alpha:
            assert opened.alpha is not None
            return opened.alpha
        if opened.alpha is not None:
            raise DatasetInvalid("is a mask with transparency: save it in grey, white where it is to be learned")
        return opened.image.convert("L")


def mask_of_latents(mask: Image.Image, cut: Cut, background: float) -> Tensor:
    """The weight of each latent, cut as the picture is: [1, h, w], float32, background..1.

    It is the mean of the mask over the 8 x 8 px that the latent stands for, raised by what the background weighs.

    Args:
        mask: of the picture's own size.
        cut: the picture's.
        background: 0..1, the weight where the mask is black.

    Raises:
        DatasetInvalid: nothing is left of it within the cut, so that there is nothing to learn.
    """
    values = np.asarray(cut_out(mask, cut, Image.Resampling.BOX), dtype=np.float32)  # [H, W], 0..255
    weights = F.avg_pool2d(torch.from_numpy(values / 255)[None], LATENT_SIDE_PX)  # [1, h, w]
    weights = background + (1 - background) * weights
    if not weights.any():
        raise DatasetInvalid("is masked whole once it is cut: there is nothing left to learn")
    return weights

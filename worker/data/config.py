"""What to train on. Imports no torch, so that the worker's light processes can build one."""

from dataclasses import dataclass, replace
from typing import Literal

MissingCaptions = Literal["error", "empty", "filename"]
Layout = Literal["plain", "kohya", "webdataset"]
LongCaptions = Literal["error", "cut"]
LatentsKind = Literal["mean", "drawn"]
MaskSource = Literal["alpha", "folder"]


@dataclass(frozen=True)
class MasksConfig:
    source: MaskSource = "folder"
    """alpha is the pictures' own channel; folder is `masks/` in the dataset's folder, with the pictures' names, or
    in a WebDataset sample `name.mask.png`."""

    background: float = 0.0
    """Weight, 0..1, of what the mask leaves out."""


@dataclass(frozen=True)
class ShuffleConfig:
    keep_tokens: int = 1
    """Tags at the front that stay in place, the trigger's among them; all of the trigger's stay in any case."""

    orders: int = 8
    """How many orders of each caption are encoded; a step draws one of them."""


@dataclass(frozen=True)
class RegularisationConfig:
    folder: str
    """Folder with the regularisation pictures and their captions, which get no trigger."""

    layout: Layout = "plain"
    weight: float = 1.0
    """Of their loss, above 0."""


@dataclass(frozen=True)
class DatasetConfig:
    folder: str
    """Folder with the pictures and, beside each, its caption: `cat.jpg` and `cat.txt`. Searched with its subfolders."""

    trigger: str | None = None
    """Words put before every caption, with ", " between; None means off."""

    missing_captions: MissingCaptions = "error"
    """What a picture without caption means: an error, the empty caption, or its file name read as words."""

    caption_dropout: float = 0.0
    """Chance, 0..1, that a picture is trained with the empty caption in a step, which guidance needs now and then."""

    shuffle: ShuffleConfig | None = None
    """Comma-separated tags of a caption in another order each time; None means off."""

    caption_tokens: int = 75
    """Tokens of a caption that are encoded, a multiple of the 75 that CLIP takes at once."""

    long_captions: LongCaptions = "error"
    """What a caption of more tokens means: an error, or that its end is cut off, with a warning."""

    layout: Layout = "plain"
    """plain reads the folder with its subfolders; kohya reads folders named `10_name` in it: repeats and class;
    webdataset takes files of the same name up to the first dot for one sample."""

    repeats: tuple[tuple[str, int], ...] = ()
    """(subfolder, how often its pictures come up where others come up once); the deepest that fits holds."""

    flip: bool = False
    """Half of the time a picture is trained mirrored, drawn for each sample."""

    latents: LatentsKind = "mean"
    """mean is the middle of the VAE's posterior; drawn draws from it anew for each sample."""

    bucket_step_px: int | None = None
    """Sides of bucket sizes are multiples of it, 64 or 32; None takes 64 from a resolution of 512 up, if that fits."""

    masks: MasksConfig | None = None
    """What of the pictures is learned; None means all."""

    regularisation: RegularisationConfig | None = None
    """Pictures of what the model shall not forget, trained in turn with the others; None means off."""


def regularisation_dataset(config: DatasetConfig) -> DatasetConfig | None:
    """How the regularisation pictures are read: as the others, but with their own layout, no trigger and no masks."""
    given = config.regularisation
    if given is None:
        return None
    own = replace(config, folder=given.folder, layout=given.layout)
    return replace(own, trigger=None, repeats=(), masks=None, regularisation=None)

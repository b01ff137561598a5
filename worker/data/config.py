"""What to train on. Imports no torch, so that the worker's light processes can build one."""

from dataclasses import dataclass, replace
from typing import Literal

MissingCaptions = Literal["error", "empty", "filename"]
Layout = Literal["plain", "kohya"]


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

    layout: Layout = "plain"
    """plain reads the folder with its subfolders; kohya reads folders named `10_name` in it: repeats and class."""

    repeats: tuple[tuple[str, int], ...] = ()
    """(subfolder, how often its pictures come up where others come up once); the deepest that fits holds."""

    regularisation: RegularisationConfig | None = None
    """Pictures of what the model shall not forget, trained in turn with the others; None means off."""


def regularisation_dataset(config: DatasetConfig) -> DatasetConfig | None:
    """How the regularisation pictures are read: as the others, but with a layout of their own and no trigger."""
    given = config.regularisation
    if given is None:
        return None
    return replace(config, folder=given.folder, layout=given.layout, trigger=None, repeats=(), regularisation=None)

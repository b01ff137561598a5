"""What to train on. Imports no torch, so that the worker's light processes can build one."""

from dataclasses import dataclass
from typing import Literal

MissingCaptions = Literal["error", "empty", "filename"]


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

"""A folder of captioned pictures on the user's machine, as it will be uploaded."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from api.schemas import CAPTION_ENDINGS, METADATA_NAME, PICTURE_ENDINGS


class NotADataset(ValueError):
    """The folder holds no dataset; the message says why, and what one looks like."""


@dataclass(frozen=True)
class DatasetFolder:
    """What lies in it: paths are relative, with /, and sorted."""

    folder: Path
    pictures: tuple[str, ...]
    captions: tuple[str, ...]
    left_out: tuple[str, ...]  # neither picture nor caption; hidden files are not even counted

    @property
    def files(self) -> tuple[str, ...]:
        """All that is uploaded."""
        return self.pictures + self.captions

    @property
    def name(self) -> str:
        """A name that the API takes, as near to the folder's as it can be."""
        words = re.sub(r"[^a-z0-9]+", "-", self.folder.resolve().name.lower())
        return words[:63].strip("-") or "dataset"


def read_dataset_folder(folder: Path) -> DatasetFolder:
    """Look through a folder and all below it.

    Raises:
        NotADataset: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise NotADataset(f"{folder} is not a folder.")
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    by_ending = {name: PurePosixPath(name).suffix.lower() for name in names}
    pictures = tuple(name for name in names if by_ending[name] in PICTURE_ENDINGS)
    captions = tuple(
        name for name in names if by_ending[name] in CAPTION_ENDINGS or PurePosixPath(name).name == METADATA_NAME
    )
    if not pictures:
        raise NotADataset(
            f"{folder} holds no picture ({', '.join(PICTURE_ENDINGS)}). Captions go beside them: cat.jpg, cat.txt."
        )
    left_out = tuple(name for name in names if name not in {*pictures, *captions})
    return DatasetFolder(folder, pictures, captions, left_out)

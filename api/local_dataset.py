"""A dataset on the user's machine, as it will be uploaded: a folder of captioned pictures, or an archive of one."""

import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from api.schemas import ARCHIVE_ENDINGS, CAPTION_ENDINGS, METADATA_NAME, PICTURE_ENDINGS


class NotADataset(ValueError):
    """There is no dataset; the message says why, and what one looks like."""


@dataclass(frozen=True)
class LocalDataset:
    """What lies in it: names are relative, with /, and sorted."""

    path: Path
    pictures: tuple[str, ...]
    captions: tuple[str, ...]
    left_out: tuple[str, ...]  # neither picture nor caption; hidden files are not even counted
    archive: str | None = None  # how its name ends: .tar.gz; None: it is a folder

    @property
    def files(self) -> Mapping[str, Path]:
        """All that is uploaded, by its path in the bucket: pictures and captions, or the archive as it is."""
        if self.archive:
            return {f"{self.name}{self.archive}": self.path}
        return {name: self.path / name for name in self.pictures + self.captions}

    @property
    def name(self) -> str:
        """A name that the API takes, as near to the folder's or the archive's as it can be."""
        own = self.path.resolve().name.lower().removesuffix(self.archive or "")
        return re.sub(r"[^a-z0-9]+", "-", own)[:63].strip("-") or "dataset"


def read_dataset(path: Path) -> LocalDataset:
    """Look through a folder and all below it, or through the names in an archive.

    Raises:
        NotADataset: it is neither, or damaged, or there is no picture in it.
    """
    archive = next((each for each in ARCHIVE_ENDINGS if path.name.lower().endswith(each)), None)
    if path.is_dir():
        archive, names = None, _names_below(path)
    elif archive is not None and path.is_file():
        names = _names_within(path, archive)
    else:
        raise NotADataset(f"{path} is neither a folder nor an archive ({', '.join(ARCHIVE_ENDINGS)}).")
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    pictures = tuple(name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_ENDINGS)
    captions = tuple(name for name in names if _is_caption(PurePosixPath(name)))
    if not pictures:
        raise NotADataset(
            f"{path} holds no picture ({', '.join(PICTURE_ENDINGS)}). Captions go beside them: cat.jpg, cat.txt."
        )
    left_out = tuple(name for name in names if name not in {*pictures, *captions})
    return LocalDataset(path, pictures, captions, left_out, archive)


def _names_below(folder: Path) -> Iterable[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _names_within(archive: Path, ending: str) -> Iterable[str]:
    """Names of the files in an archive; the worker looks at all else."""
    try:
        if ending == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                return [each.filename for each in zipped.infolist() if not each.is_dir()]
        with tarfile.open(archive) as tar:
            return [each.name.removeprefix("./") for each in tar if each.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise NotADataset(f"{archive} cannot be read ({error}): make it again.") from error


def _is_caption(path: PurePosixPath) -> bool:
    return path.suffix.lower() in CAPTION_ENDINGS or path.name == METADATA_NAME

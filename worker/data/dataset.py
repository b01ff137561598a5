"""Reads a folder of captioned pictures; whatever is wrong with it is said at once."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.data.config import DatasetConfig
from worker.data.pictures import PICTURE_ENDINGS, UNREAD_ENDINGS, open_picture
from worker.errors import DatasetInvalid

CAPTION_ENDINGS = (".txt", ".caption")  # the first that exists is used
_FAULTS_SHOWN = 10


@dataclass(frozen=True)
class Picture:
    """One picture with its caption; the pixels stay in the file."""

    path: Path
    name: str  # path within the dataset's folder, for messages
    sha256: str  # of the file's bytes, in hex
    size_px: tuple[int, int]  # width, height, upright
    caption: str  # as trained, trigger included


@dataclass(frozen=True)
class Dataset:
    pictures: tuple[Picture, ...]  # sorted by name
    skipped: tuple[str, ...]  # one sentence a file that is not used
    warnings: tuple[str, ...]  # one sentence a kind of change that was made


def read_dataset(config: DatasetConfig) -> Dataset:
    """Read every picture and caption once.

    Raises:
        DatasetInvalid: no picture, or one that cannot be decoded, or one without caption. The message lists the first
            ten faults by file and counts the rest.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise DatasetInvalid(f"{folder} is not a folder.")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    pictures: list[Picture] = []
    faults: list[str] = []
    notes: defaultdict[str, list[str]] = defaultdict(list)  # what was changed, and in which pictures
    for name, path in files.items():
        ending = path.suffix.lower()
        if ending in UNREAD_ENDINGS:
            faults.append(f"{name} is a {ending} file: save it as one of {', '.join(PICTURE_ENDINGS)}.")
        if ending not in PICTURE_ENDINGS:
            continue
        caption, caption_faults = _caption(path, name, files, config)
        try:
            opened = open_picture(path)
        except DatasetInvalid as error:
            caption_faults.append(f"{name} {error}.")
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            pictures.append(Picture(path, name, digest, opened.image.size, caption))
            for note in opened.notes:
                notes[note].append(name)
        faults += caption_faults
    if not pictures and not faults:
        faults.append(f"It has no picture ({', '.join(PICTURE_ENDINGS)}) among {len(files)} files.")
    if faults:
        raise DatasetInvalid(_listing(f"The dataset cannot be trained on: {len(faults)} faults.", faults))
    changes = (f"{len(names)} pictures {note}: {_some(names)}." for note, names in notes.items())
    return Dataset(tuple(pictures), tuple(_skipped(files)), tuple(changes))


def _caption(path: Path, name: str, files: Mapping[str, Path], config: DatasetConfig) -> tuple[str, list[str]]:
    """The caption as trained, and what is wrong with it."""
    text, faults = "", []
    for ending in CAPTION_ENDINGS:
        caption_name = str(Path(name).with_suffix(ending).as_posix())
        if caption_name in files:
            try:
                text = files[caption_name].read_text(encoding="utf-8-sig")  # with or without byte order mark
            except UnicodeDecodeError as error:
                return "", [f"{caption_name} is not UTF-8 (byte {error.start}): save it as UTF-8."]
            break
    caption = " ".join(text.split())
    if not caption and config.missing_captions == "error":
        wanted = Path(name).with_suffix(CAPTION_ENDINGS[0]).name
        faults.append(f"{name} has no caption: write {wanted} beside it, or set captions.missing.")
    if not caption and config.missing_captions == "filename":
        caption = " ".join(path.stem.replace("_", " ").replace("-", " ").split())
    return ", ".join(part for part in (config.trigger, caption) if part), faults


def _skipped(files: Mapping[str, Path]) -> Iterable[str]:
    """Every file that is neither a picture nor the caption of one, and why."""
    stems = {name[: -len(path.suffix)] for name, path in files.items() if path.suffix.lower() in PICTURE_ENDINGS}
    for name, path in files.items():
        stem = name[: len(name) - len(path.suffix)]
        if path.suffix in CAPTION_ENDINGS:
            if stem not in stems:
                yield f"{name} is a caption without picture."
            elif path.suffix != CAPTION_ENDINGS[0] and stem + CAPTION_ENDINGS[0] in files:
                yield f"{name} is not used, because {stem + CAPTION_ENDINGS[0]} is there."
        elif path.suffix.lower() not in PICTURE_ENDINGS:
            yield f"{name} is neither a picture nor a caption."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _FAULTS_SHOWN} more" if len(names) > _FAULTS_SHOWN else ""
    return ", ".join(names[:_FAULTS_SHOWN]) + more


def _listing(title: str, faults: list[str]) -> str:
    more = [f"And {len(faults) - _FAULTS_SHOWN} more."] if len(faults) > _FAULTS_SHOWN else []
    return "\n".join([title, *faults[:_FAULTS_SHOWN], *more])

"""Reads a folder of captioned pictures; whatever is wrong with it is said at once."""

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.data.captions import Captions
from worker.data.config import DatasetConfig, regularisation_dataset
from worker.data.layout import NotRead, is_whole, mask_of, place_of, sample_of
from worker.data.masks import Mask
from worker.data.pictures import PICTURE_ENDINGS, UNREAD_ENDINGS, OpenedPicture, open_picture
from worker.errors import DatasetInvalid

REGULARISATION = "regularisation/"  # stands before the names of those pictures

MAX_REPEATED = 200_000
"""Pictures, repeats counted: the order of a cycle is held in memory."""

_FAULTS_SHOWN = 10


@dataclass(frozen=True)
class Picture:
    """One picture with its caption; the pixels stay in the file."""

    path: Path
    name: str  # path within the dataset's folder, for messages
    sha256: str  # of the file's bytes, in hex
    size_px: tuple[int, int]  # width, height, upright
    caption: str  # as trained, trigger included
    caption_source: str = ".txt"  # see worker.data.captions.Caption
    repeats: int = 1
    regularisation: bool = False
    mask: Mask | None = None


@dataclass(frozen=True)
class Dataset:
    pictures: tuple[Picture, ...]  # sorted by name, those of the regularisation last
    skipped: tuple[str, ...]  # one sentence a file that is not used
    warnings: tuple[str, ...]  # one sentence a kind of change that was made
    held_out: tuple[Picture, ...] = ()  # not among `pictures`, no two the same: see worker/data/held_out.py


def read_dataset(config: DatasetConfig) -> Dataset:
    """Read every picture and caption once.

    Raises:
        DatasetInvalid: no picture, or one that cannot be decoded, or one without caption. The message lists the first
            ten faults by file and counts the rest.
    """
    folders = [_Folder(config, "")]
    if (of_regularisation := regularisation_dataset(config)) is not None:
        folders.append(_Folder(of_regularisation, REGULARISATION))
    if faults := [fault for folder in folders for fault in folder.faults]:
        raise DatasetInvalid(_listing(f"The dataset cannot be trained on: {len(faults)} faults.", faults))
    return Dataset(
        pictures=tuple(picture for folder in folders for picture in folder.pictures),
        skipped=tuple(line for folder in folders for line in folder.skipped),
        warnings=tuple(line for folder in folders for line in folder.warnings),
    )


class _Folder:
    """One folder, read: its pictures, and what is to be said of it. `prefix` goes before every name."""

    def __init__(self, config: DatasetConfig, prefix: str) -> None:
        folder = Path(config.folder)
        if not folder.is_dir():
            raise DatasetInvalid(f"{folder} is not a folder.")
        self.pictures: list[Picture] = []
        self.faults: list[str] = []
        self.skipped: list[str] = []
        self.warnings: list[str] = []
        self._config = config
        self._prefix = prefix
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self._read(files)
        self._check_repeats(files)
        if not self.pictures and not self.faults:
            what = "The regularisation" if prefix else "It"
            self.faults.append(f"{what} has no picture ({', '.join(PICTURE_ENDINGS)}) among {len(files)} files.")

    def _read(self, files: Mapping[str, Path]) -> None:
        layout = self._config.layout
        captions = Captions(files, _is_picture, self._config.missing_captions, layout)
        self._masks = {mask_of(name, layout): name for name in files if self._is_mask(name)}
        self._masks_used: set[str] = set()
        whole_samples = {posixpath.splitext(name)[0] for name in files if _is_picture(name) and is_whole(name)}
        not_read: dict[str, str] = {}
        notes: defaultdict[str, list[str]] = defaultdict(list)  # what was changed, and in which pictures
        for name, path in files.items():
            ending = _ending(name)
            if (ending not in PICTURE_ENDINGS and ending not in UNREAD_ENDINGS) or self._is_mask(name):
                continue
            try:
                place = place_of(name, self._config, whole_samples)
            except NotRead as why:
                not_read[name] = str(why)
                continue
            except ValueError as error:
                self.faults.append(f"{self._prefix}{name} {error}.")
                continue
            if ending in UNREAD_ENDINGS:
                endings = ", ".join(PICTURE_ENDINGS)
                self.faults.append(f"{self._prefix}{name} is a {ending} file: save it as one of {endings}.")
                continue
            caption = captions.of(name, place.class_tokens)
            self.faults += [f"{self._prefix}{fault}" for fault in captions.faults]
            captions.faults.clear()
            if caption.source == "class tokens":
                notes["without caption have the name of their folder for one"].append(name)
            try:
                opened = open_picture(path)
            except DatasetInvalid as error:
                self.faults.append(f"{self._prefix}{name} {error}.")
                continue
            for note in opened.notes:
                notes[note].append(name)
            digest = _sha256(path)
            if (mask := self._mask(name, path, digest, opened, files)) is None and self._config.masks:
                notes["without mask are learned whole"].append(name)
            self.pictures.append(
                Picture(
                    path,
                    self._prefix + name,
                    digest,
                    opened.image.size,
                    ", ".join(part for part in (self._config.trigger, caption.text) if part),
                    caption.source,
                    place.repeats,
                    bool(self._prefix),
                    mask,
                )
            )
        self.faults += [f"{self._prefix}{fault}" for fault in captions.faults]  # of metadata, without any picture
        self.warnings += [f"{len(names)} pictures {note}: {self._some(names)}." for note, names in notes.items()]
        self.skipped += self._skipped(files, captions, not_read)

    def _skipped(self, files: Mapping[str, Path], captions: Captions, not_read: Mapping[str, str]) -> Iterable[str]:
        """Every file that is neither a picture nor the caption of one, and why."""
        pictures = {name for name in files if _is_picture(name) and name not in not_read}
        for name in files:
            if self._is_mask(name):
                if name not in self._masks_used:
                    yield f"{self._prefix}{name} is a mask without picture, or there is another for it."
                continue
            if name in pictures or name in captions.used:
                continue
            why = not_read.get(name) or captions.why_unused(name) or "is neither a picture nor a caption"
            yield f"{self._prefix}{name} {why}."

    def _is_mask(self, name: str) -> bool:
        masks = self._config.masks
        by_name = masks is not None and masks.source == "folder" and _is_picture(name)
        return by_name and mask_of(name, self._config.layout) is not None

    def _mask(
        self, name: str, path: Path, digest: str, opened: OpenedPicture, files: Mapping[str, Path]
    ) -> Mask | None:
        """The mask of a picture, if it has one. What is wrong with it goes to the faults."""
        options = self._config.masks
        if options is None:
            return None
        if options.source == "alpha":
            return None if opened.alpha is None else Mask(path, digest, alpha=True)
        mask_name = self._masks.get(sample_of(name, self._config.layout))
        if mask_name is None:
            return None
        self._masks_used.add(mask_name)
        mask = Mask(files[mask_name], _sha256(files[mask_name]), alpha=False)
        try:
            size = mask.open().size
        except DatasetInvalid as error:
            self.faults.append(f"{mask_name} {error}.")
            return None
        if size != opened.image.size:
            sizes = [f"{width}x{height}" for width, height in (size, opened.image.size)]
            self.faults.append(f"{mask_name} has {sizes[0]} px, but {name} has {sizes[1]}: make them equal.")
        return mask

    def _check_repeats(self, files: Mapping[str, Path]) -> None:
        total = sum(picture.repeats for picture in self.pictures)
        if total > MAX_REPEATED:
            self.faults.append(f"It has {total:,} pictures with repeats, more than {MAX_REPEATED:,}: lower them.")
        for folder, _ in self._config.repeats:
            if not any(name.startswith(f"{folder}/") for name in files if _is_picture(name)):
                self.faults.append(f"repeats names {folder}, but no picture lies there.")

    def _some(self, names: list[str]) -> str:
        more = f" and {len(names) - _FAULTS_SHOWN} more" if len(names) > _FAULTS_SHOWN else ""
        return ", ".join(self._prefix + name for name in names[:_FAULTS_SHOWN]) + more


def caption_sources(pictures: Iterable[Picture]) -> dict[str, int]:
    """How many captions came from where, the most first."""
    return dict(Counter(picture.caption_source for picture in pictures).most_common())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_picture(name: str) -> bool:
    return _ending(name) in PICTURE_ENDINGS


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _listing(title: str, faults: list[str]) -> str:
    more = [f"And {len(faults) - _FAULTS_SHOWN} more."] if len(faults) > _FAULTS_SHOWN else []
    return "\n".join([title, *faults[:_FAULTS_SHOWN], *more])

"""Finds the caption of each picture: in a metadata.jsonl, in a file beside it, or in place of both.

A metadata.jsonl is that of Hugging Face's imagefolder (https://huggingface.co/docs/datasets/image_dataset): one JSON
object a line, `file_name` from the file's own folder on, and `text`. It goes before files beside the picture.
"""

import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.data.config import Layout, MissingCaptions
from worker.data.layout import sample_of

CAPTION_ENDINGS = (".txt", ".caption")  # the first that exists is used
METADATA_NAME = "metadata.jsonl"


@dataclass(frozen=True)
class Caption:
    text: str  # white space and line ends are single blanks
    source: str  # .txt, .caption, metadata.jsonl, class tokens, file name, none


class Captions:
    """The captions in one dataset's folder.

    Args:
        files: every file by its path within the folder.
        is_picture: whether a file of that name is one.
        missing: what a picture without caption means.
        layout: says which file belongs to a picture.

    Attributes:
        faults: one sentence each, of metadata files; grows with `of`.
        used: names of the files that captions came from; grows with `of`.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        is_picture: Callable[[str], bool],
        missing: MissingCaptions,
        layout: Layout = "plain",
    ) -> None:
        self.faults: list[str] = []
        self.used: set[str] = set()
        self._files = files
        self._missing = missing
        self._layout: Layout = layout
        self._beside: dict[tuple[str, str], str] = {}
        for name in files:
            stem, ending = posixpath.splitext(name)
            if ending.lower() in CAPTION_ENDINGS:
                self._beside.setdefault((stem, ending.lower()), name)
        self._picture_of: dict[str, str] = {}  # sample to picture; grows with `of`
        self._listed: dict[str, tuple[str, str]] = {}  # picture to text and the metadata file's name
        for name in files:
            if posixpath.basename(name) == METADATA_NAME:
                self.used.add(name)
                self._read_metadata(name, is_picture)

    def of(self, name: str, class_tokens: str = "") -> Caption:
        """The caption of the picture `name`. Whatever is wrong with it goes to `faults`, once."""
        self._picture_of[sample_of(name, self._layout)] = name
        text, source = self._found(name)
        if text:
            return Caption(text, source)
        if class_tokens:
            return Caption(_one_line(class_tokens), "class tokens")
        if self._missing == "filename":
            stem = posixpath.splitext(posixpath.basename(name))[0]
            return Caption(_one_line(stem.replace("_", " ").replace("-", " ")), "file name")
        if self._missing == "error" and source != "unreadable":
            wanted = posixpath.basename(sample_of(name, self._layout)) + CAPTION_ENDINGS[0]
            self.faults.append(f"{name} has no caption: write {wanted} beside it, or set captions.missing.")
        return Caption("", "none")

    def why_unused(self, name: str) -> str | None:
        """Why the file `name` is the caption of nothing, in words that go on after it; None if it is no caption.

        To be asked when `of` has been asked of every picture.
        """
        stem, ending = posixpath.splitext(name)
        if ending.lower() not in CAPTION_ENDINGS:
            return None
        if (picture := self._picture_of.get(stem)) is None:
            return "is a caption without picture"
        better = self._listed[picture][1] if picture in self._listed else self._file_beside(picture)
        return f"is not used, because {better} is there"

    def _found(self, name: str) -> tuple[str, str]:
        """Text and source; the source is `unreadable` if a fault was noted."""
        if name in self._listed:
            return _one_line(self._listed[name][0]), METADATA_NAME
        beside = self._file_beside(name)
        if beside is None:
            return "", "none"
        self.used.add(beside)
        text = self._read(beside)
        return ("", "unreadable") if text is None else (_one_line(text), posixpath.splitext(beside)[1].lower())

    def _file_beside(self, name: str) -> str | None:
        stem = sample_of(name, self._layout)
        names = (self._beside.get((stem, ending)) for ending in CAPTION_ENDINGS)
        return next((each for each in names if each is not None), None)

    def _read(self, name: str) -> str | None:
        """The content of a text file, or None and a fault."""
        try:
            return self._files[name].read_text(encoding="utf-8-sig")  # with or without byte order mark
        except UnicodeDecodeError as error:
            fault = f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8."
        except OSError as error:
            fault = f"{name} cannot be read ({error.strerror})."
        if fault not in self.faults:  # two pictures may share a caption
            self.faults.append(fault)
        return None

    def _read_metadata(self, name: str, is_picture: Callable[[str], bool]) -> None:
        for number, line in enumerate((self._read(name) or "").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                picture, text = _entry(line, posixpath.dirname(name))
                if picture in self._listed:
                    raise ValueError(f"names {picture} again")
                if picture not in self._files or not is_picture(picture):
                    raise ValueError(f"names {picture}, but there is no such picture")
            except ValueError as error:
                self.faults.append(f"{name}, line {number}, {error}.")
            else:
                self._listed[picture] = text, name


def _entry(line: str, folder: str) -> tuple[str, str]:
    """The picture's path within the dataset's folder, and its text. Raises ValueError, to go on after the line."""
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError('has no file_name: write {"file_name": "cat.jpg", "text": "a cat"}')
    if not isinstance(entry.get("text"), str):
        raise ValueError(f"has no text, only {', '.join(map(str, entry))}")
    return posixpath.normpath(posixpath.join(folder, entry["file_name"])), entry["text"]


def _one_line(text: str) -> str:
    return " ".join(text.split())

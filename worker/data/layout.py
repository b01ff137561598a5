"""Where in a dataset's folder pictures may lie, and what their folder says of them.

The kohya layout is that of sd-scripts (library/config_util.py, generate_dreambooth_subsets_config_by_subdirs): a folder
`10_ohwx cat` repeats its pictures ten times, and its class tokens, `ohwx cat`, are the caption of those without one.
What lies elsewhere is not read.

The webdataset layout is that of https://github.com/webdataset/webdataset#the-webdataset-format: a sample is all files
of a folder whose names are the same up to the first dot.
"""

import posixpath
import re
from collections.abc import Collection
from dataclasses import dataclass

from worker.data.config import DatasetConfig, Layout

MAX_REPEATS = 1000
"""More than anyone means: `2023_holiday` is a year."""

MASKS_FOLDER = "masks/"
_MASK_EXTENSION = ".mask"  # of a WebDataset sample: cat.mask.png

_KOHYA_FOLDER = re.compile(r"([0-9]+)(?:_(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """What a picture's folder says of it."""

    repeats: int = 1
    class_tokens: str = ""


def sample_of(name: str, layout: Layout) -> str:
    """What a picture has in common with its caption and its mask: its path up to its ending, or to its first dot."""
    if layout != "webdataset":
        return posixpath.splitext(name)[0]
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.partition(".")[0])


def is_whole(name: str) -> bool:
    """Whether a picture is all that its WebDataset sample is named by: cat.png, not cat.left.png."""
    return posixpath.splitext(name)[0] == sample_of(name, "webdataset")


def mask_of(name: str, layout: Layout) -> str | None:
    """The sample that the picture `name` is the mask of; None if its name is not that of a mask."""
    stem = posixpath.splitext(name)[0]
    if layout == "webdataset":
        return sample_of(name, layout) if stem.endswith(_MASK_EXTENSION) else None
    return stem.removeprefix(MASKS_FOLDER) if stem.startswith(MASKS_FOLDER) else None


def place_of(name: str, config: DatasetConfig, whole_samples: Collection[str]) -> Place:
    """What the folder of `name`, a path within the dataset's folder, says.

    `whole_samples` are those with a picture that `is_whole`: in a WebDataset it goes before others.

    Raises:
        NotRead: pictures there are not read.
        ValueError: the folder asks for more repeats than MAX_REPEATS.
    """
    if config.layout == "kohya":
        return _kohya_place(name)
    if config.layout == "webdataset":
        sample = sample_of(name, config.layout)
        if sample in whole_samples and not is_whole(name):
            raise NotRead(f"is a further picture of the sample {sample}")
    inside = [(folder, times) for folder, times in config.repeats if name.startswith(f"{folder}/")]
    return Place(repeats=max(inside, key=lambda each: len(each[0]))[1]) if inside else Place()


class NotRead(Exception):
    """A file lies where the layout reads nothing; the message goes on after its name."""


def _kohya_place(name: str) -> Place:
    *folders, _ = name.split("/")
    match = _KOHYA_FOLDER.fullmatch(folders[0]) if folders else None
    if match is None or int(match[1]) == 0:
        raise NotRead("lies in no folder named like 10_name, which is all that the kohya layout reads")
    if len(folders) > 1:
        raise NotRead(f"lies deeper than {folders[0]}, where the kohya layout reads nothing")
    if int(match[1]) > MAX_REPEATS:
        raise ValueError(f"lies in {folders[0]}, which asks for {match[1]} repeats: the limit is {MAX_REPEATS}")
    return Place(int(match[1]), match[2] or "")

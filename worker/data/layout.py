"""Where in a dataset's folder pictures may lie, and what their folder says of them.

The kohya layout is that of sd-scripts (library/config_util.py, generate_dreambooth_subsets_config_by_subdirs): a folder
`10_ohwx cat` repeats its pictures ten times, and its class tokens, `ohwx cat`, are the caption of those without one.
What lies elsewhere is not read.
"""

import re
from dataclasses import dataclass

from worker.data.config import DatasetConfig

MAX_REPEATS = 1000
"""More than anyone means: `2023_holiday` is a year."""

_KOHYA_FOLDER = re.compile(r"([0-9]+)(?:_(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """What a picture's folder says of it."""

    repeats: int = 1
    class_tokens: str = ""


def place_of(name: str, config: DatasetConfig) -> Place:
    """What the folder of `name`, a path within the dataset's folder, says.

    Raises:
        NotRead: pictures there are not read.
        ValueError: the folder asks for more repeats than MAX_REPEATS.
    """
    if config.layout == "kohya":
        return _kohya_place(name)
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

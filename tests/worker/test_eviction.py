"""Of a folder with a limit, what was used least recently goes, and no more than must."""

import os
import time
from pathlib import Path

import pytest

from worker.eviction import BEING_WRITTEN_S, make_room


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files of 10 bytes, used in the order of their names; the last is being written."""
    for age_s, name in enumerate(("e/.late.tmp", "d/4", "c/3", "b/2", "a/1")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"0123456789")
        os.utime(path, (time.time() - 10 * age_s,) * 2)
    return tmp_path


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("max_bytes", "names"),
    [(1000, ["a/1", "b/2", "c/3", "d/4"]), (40, ["a/1", "b/2", "c/3", "d/4"]), (25, ["c/3", "d/4"]), (0, [])],
)
def test_the_least_recently_used_go_first(folder: Path, max_bytes: int, names: list[str]) -> None:
    assert make_room(folder, max_bytes) == 4 - len(names)
    assert left(folder) == [*names, "e/.late.tmp"]


def test_what_a_killed_process_was_writing_goes_in_time(folder: Path) -> None:
    os.utime(folder / "e/.late.tmp", (time.time() - 2 * BEING_WRITTEN_S,) * 2)
    make_room(folder, 40)
    assert left(folder) == ["a/1", "b/2", "c/3", "d/4"]


def test_a_folder_that_is_not_there_is_small_enough(tmp_path: Path) -> None:
    assert make_room(tmp_path / "none", 0) == 0

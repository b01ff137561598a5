"""What is held out depends on the bytes of the pictures alone, and nothing of it is left to train on."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.data.config import DatasetConfig, RegularisationConfig
from worker.data.dataset import Dataset, read_dataset
from worker.data.held_out import MAX_HELD_OUT, hold_out
from worker.errors import DatasetInvalid

Make = Callable[..., Path]


def picture(folder: Path, name: str, number: int) -> None:
    """A picture that looks like no other number's, with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / name)
    (folder / name).with_suffix(".txt").write_text(f"number {number}")


def numbers(dataset: Dataset, held_out: bool) -> set[str]:
    return {each.caption for each in (dataset.held_out if held_out else dataset.pictures)}


def folder_of(path: Path, order: Sequence[int]) -> DatasetConfig:
    for position, number in enumerate(order):
        picture(path, f"{position:02}.png", number)
    return DatasetConfig(str(path))


def test_the_same_pictures_are_held_out_whatever_they_are_called(tmp_path: Path) -> None:
    one = hold_out(read_dataset(folder_of(tmp_path / "a", range(10))), 3, None)
    other = hold_out(read_dataset(folder_of(tmp_path / "b", range(9, -1, -1))), 3, None)
    assert len(one.held_out) == 3
    assert numbers(one, held_out=True) == numbers(other, held_out=True)
    assert numbers(one, held_out=True) | numbers(one, held_out=False) == {f"number {n}" for n in range(10)}
    assert not numbers(one, held_out=True) & numbers(one, held_out=False)


def test_more_of_them_are_the_same_and_others(tmp_path: Path) -> None:
    dataset = read_dataset(folder_of(tmp_path, range(10)))
    assert numbers(hold_out(dataset, 2, None), held_out=True) < numbers(hold_out(dataset, 5, None), held_out=True)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.24, 2), (0.26, 3), (0.5, 5)])
def test_a_share_is_rounded_and_never_none(tmp_path: Path, share: float, count: int) -> None:
    assert len(hold_out(read_dataset(folder_of(tmp_path, range(10))), None, share).held_out) == count


def test_a_share_of_many_pictures_is_limited(tmp_path: Path) -> None:
    dataset = read_dataset(folder_of(tmp_path, range(2 * MAX_HELD_OUT + 10)))
    assert len(hold_out(dataset, None, 0.5).held_out) == MAX_HELD_OUT


def test_copies_are_held_out_too_wherever_they_lie(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "own", range(5))
    (first,) = hold_out(read_dataset(config), 1, None).held_out
    for copy in (tmp_path / "own" / "z.png", tmp_path / "other" / "copy.png"):
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(first.path, copy)
        copy.with_suffix(".txt").write_text(first.caption)
    picture(tmp_path / "other", "kept.png", 77)
    config = DatasetConfig(config.folder, regularisation=RegularisationConfig(str(tmp_path / "other")))
    dataset = hold_out(read_dataset(config), 1, None)
    assert [each.name for each in dataset.held_out] == [first.name]
    assert [each.name for each in dataset.pictures if each.regularisation] == ["regularisation/kept.png"]
    assert first.sha256 not in {each.sha256 for each in dataset.pictures}
    assert dataset.warnings[-1] == (
        "2 pictures are the same as one that is held out, and are not trained either: z.png, regularisation/copy.png."
    )


def test_something_must_be_left_to_train_on(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "own", [0, 0, 1])
    with pytest.raises(DatasetInvalid, match="holds out 2 pictures, and the dataset has 2 different ones"):
        hold_out(read_dataset(config), 2, None)
    (first,) = hold_out(read_dataset(config), 1, None).held_out
    picture(tmp_path / "other", "a.png", int(first.caption.split()[1]))
    config = DatasetConfig(config.folder, regularisation=RegularisationConfig(str(tmp_path / "other")))
    with pytest.raises(DatasetInvalid, match="Every regularisation picture is one that"):
        hold_out(read_dataset(config), 1, None)

"""What of a folder is a dataset, and what is said of the rest."""

from pathlib import Path

import pytest

from api.dataset_folder import NotADataset, read_dataset_folder
from api.schemas import CAPTION_ENDINGS, PICTURE_ENDINGS


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_pictures_and_captions_at_any_depth_and_the_rest_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "b.JPG", "b.txt", "sub/a.png", "sub/a.caption", "notes.md", ".hidden.jpg", ".git/c.jpg", "old.gif")
    found = read_dataset_folder(tmp_path)
    assert found.pictures == ("b.JPG", "sub/a.png")
    assert found.captions == ("b.txt", "sub/a.caption")
    assert found.left_out == ("notes.md", "old.gif")


def test_no_folder_and_no_picture_are_errors(tmp_path: Path) -> None:
    with pytest.raises(NotADataset, match="is not a folder"):
        read_dataset_folder(tmp_path / "none")
    with pytest.raises(NotADataset, match="no picture"):
        read_dataset_folder(tmp_path)


@pytest.mark.parametrize(
    ("folder", "name"), [("Ginger Cat (2)", "ginger-cat-2"), ("写真", "dataset"), ("x" * 70, "x" * 63), ("-a-", "a")]
)
def test_the_folders_name_becomes_one_that_the_api_takes(tmp_path: Path, folder: str, name: str) -> None:
    _write(tmp_path / folder, "a.jpg")
    assert read_dataset_folder(tmp_path / folder).name == name


def test_what_is_uploaded_is_what_the_trainer_reads() -> None:
    from worker.data.captions import CAPTION_ENDINGS as CAPTIONS_READ
    from worker.data.pictures import PICTURE_ENDINGS as PICTURES_READ

    assert (PICTURE_ENDINGS, CAPTION_ENDINGS) == (PICTURES_READ, CAPTIONS_READ)

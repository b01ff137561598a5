"""What of a folder is a dataset, and what is said of the rest."""

import shutil
from pathlib import Path

import pytest

from api.local_dataset import NotADataset, read_dataset
from api.schemas import ARCHIVE_ENDINGS, CAPTION_ENDINGS, PICTURE_ENDINGS


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_pictures_and_captions_at_any_depth_and_the_rest_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "b.JPG", "b.txt", "sub/a.png", "sub/a.caption", "notes.md", ".hidden.jpg", ".git/c.jpg", "old.gif")
    found = read_dataset(tmp_path)
    assert found.pictures == ("b.JPG", "sub/a.png")
    assert found.captions == ("b.txt", "sub/a.caption")
    assert found.left_out == ("notes.md", "old.gif")


def test_no_folder_and_no_picture_are_errors(tmp_path: Path) -> None:
    with pytest.raises(NotADataset, match="neither a folder nor an archive"):
        read_dataset(tmp_path / "none")
    with pytest.raises(NotADataset, match="no picture"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("folder", "name"), [("Ginger Cat (2)", "ginger-cat-2"), ("写真", "dataset"), ("x" * 70, "x" * 63), ("-a-", "a")]
)
def test_the_folders_name_becomes_one_that_the_api_takes(tmp_path: Path, folder: str, name: str) -> None:
    _write(tmp_path / folder, "a.jpg")
    assert read_dataset(tmp_path / folder).name == name


@pytest.mark.parametrize(
    ("kind", "ending"), [("zip", ".zip"), ("tar", ".tar"), ("gztar", ".tar.gz"), ("gztar", ".tgz")]
)
def test_an_archive_goes_up_whole_and_says_what_is_in_it(tmp_path: Path, kind: str, ending: str) -> None:
    _write(tmp_path / "in", "b.JPG", "sub/b.txt", "notes.md", ".hidden.jpg", "__MACOSX/._b.jpg", "sub/metadata.jsonl")
    made = shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "in")
    archive = Path(made).rename(tmp_path / f"Ginger Cat{ending.upper()}")
    found = read_dataset(archive)
    assert (found.pictures, found.captions, found.left_out) == (
        ("b.JPG",),
        ("sub/b.txt", "sub/metadata.jsonl"),
        ("notes.md",),
    )
    assert found.files == {f"ginger-cat{ending}": archive}


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_an_archive_that_cannot_be_read_or_holds_no_picture_is_an_error(tmp_path: Path, ending: str) -> None:
    archive = tmp_path / f"a{ending}"
    archive.write_bytes(b"no archive")
    with pytest.raises(NotADataset, match="cannot be read"):
        read_dataset(archive)
    _write(tmp_path / "in", "notes.md")
    kind = {".zip": "zip", ".tar": "tar"}.get(ending, "gztar")
    Path(shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "in")).rename(archive)
    with pytest.raises(NotADataset, match="no picture"):
        read_dataset(archive)


def test_what_is_uploaded_is_what_the_trainer_reads() -> None:
    from worker.archives import ARCHIVE_ENDINGS as ARCHIVES_READ
    from worker.data.captions import CAPTION_ENDINGS as CAPTIONS_READ
    from worker.data.pictures import PICTURE_ENDINGS as PICTURES_READ

    assert (PICTURE_ENDINGS, CAPTION_ENDINGS, ARCHIVE_ENDINGS) == (PICTURES_READ, CAPTIONS_READ, ARCHIVES_READ)

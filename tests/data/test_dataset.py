"""A dataset is read whole, or all that is wrong with it is said at once; nothing is skipped without a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.data.buckets import bucket_sizes, cut_for
from worker.data.config import DatasetConfig, MasksConfig, MissingCaptions, RegularisationConfig
from worker.data.dataset import Dataset, read_dataset
from worker.data.report import dataset_report
from worker.errors import DatasetInvalid

Make = Callable[..., Path]


def read(
    tmp_path: Path, trigger: str | None = None, missing_captions: MissingCaptions = "error", **options: Any
) -> Dataset:
    return read_dataset(DatasetConfig(str(tmp_path / "dataset"), trigger, missing_captions, **options))


def faults(tmp_path: Path, **options: Any) -> list[str]:
    with pytest.raises(DatasetInvalid) as caught:
        read(tmp_path, **options)
    return str(caught.value).splitlines()[1:]


def test_real_photos_are_read_with_their_captions(photos: Path) -> None:
    dataset = read_dataset(DatasetConfig(str(photos)))
    assert [picture.name for picture in dataset.pictures] == sorted(path.name for path in photos.glob("*.jpg"))
    assert dataset.pictures[3].caption.startswith("close-up photo of a ginger tabby cat")
    assert dataset.pictures[3].size_px == (451, 300)
    assert dataset.skipped == ("LICENSES.md is neither a picture nor a caption.",)
    assert dataset.warnings == ()


def test_subfolders_and_endings_in_capitals_are_read(tmp_path: Path, make_picture: Make) -> None:
    make_picture("b/two.PNG")
    make_picture("one.JPG")
    assert [picture.name for picture in read(tmp_path).pictures] == ["b/two.PNG", "one.JPG"]


def test_captions_may_have_a_byte_order_mark_and_lines(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png").with_suffix(".txt").write_bytes("\ufeffein Kätzchen,\r\n  rot \n".encode())
    assert read(tmp_path).pictures[0].caption == "ein Kätzchen, rot"


def test_kohyas_caption_ending_is_read_and_txt_wins(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png", caption=None).with_suffix(".caption").write_text("from a.caption")
    make_picture("b.png", caption="from b.txt").with_suffix(".caption").write_text("from b.caption")
    dataset = read(tmp_path)
    assert [picture.caption for picture in dataset.pictures] == ["from a.caption", "from b.txt"]
    assert dataset.skipped == ("b.caption is not used, because b.txt is there.",)
    assert [picture.caption_source for picture in dataset.pictures] == [".caption", ".txt"]


def test_the_trigger_goes_before_each_caption(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png", caption="sitting")
    make_picture("b.png", caption=None)
    captions = [picture.caption for picture in read(tmp_path, "ohwx cat", "empty").pictures]
    assert captions == ["ohwx cat, sitting", "ohwx cat"]


@pytest.mark.parametrize(("missing", "caption"), [("empty", ""), ("filename", "red fox 2")])
@pytest.mark.parametrize("written", [None, " \n"])
def test_a_missing_caption_may_be_allowed(
    tmp_path: Path, make_picture: Make, missing: MissingCaptions, caption: str, written: str | None
) -> None:
    make_picture("red_fox-2.png", caption=written)
    assert read(tmp_path, missing_captions=missing).pictures[0].caption == caption


@pytest.mark.parametrize("written", [None, " \n"])
def test_a_missing_caption_is_an_error_that_names_the_file(
    tmp_path: Path, make_picture: Make, written: str | None
) -> None:
    make_picture("cat.png", caption=written)
    with pytest.raises(DatasetInvalid, match=r"cat\.png has no caption: write cat\.txt beside it"):
        read(tmp_path)


def test_all_faults_are_told_at_once(tmp_path: Path, make_picture: Make) -> None:
    make_picture("good.png")
    broken = make_picture("broken.jpg")
    broken.write_bytes(broken.read_bytes()[:300])
    make_picture("bare.png", caption=None)
    make_picture("latin.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    (tmp_path / "dataset" / "phone.HEIC").touch()
    with pytest.raises(DatasetInvalid) as caught:
        read(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The dataset cannot be trained on: 4 faults."
    assert lines[1].startswith("bare.png has no caption")
    assert lines[2].startswith("broken.jpg cannot be decoded")
    assert lines[3] == "latin.txt is not UTF-8 (byte 3): save it as UTF-8."
    assert lines[4].startswith("phone.HEIC is a .heic file: save it as one of .jpg")


def test_after_ten_faults_the_rest_is_counted(tmp_path: Path, make_picture: Make) -> None:
    for number in range(13):
        make_picture(f"{number:02}.png", caption=None)
    with pytest.raises(DatasetInvalid) as caught:
        read(tmp_path)
    lines = str(caught.value).splitlines()
    assert (lines[0], len(lines), lines[-1]) == ("The dataset cannot be trained on: 13 faults.", 12, "And 3 more.")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="is not a folder"):
        read(tmp_path)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "notes.txt").touch()
    with pytest.raises(DatasetInvalid, match=r"has no picture \(\.jpg.*\) among 1 files"):
        read(tmp_path)


def test_every_file_is_a_picture_a_caption_or_a_line_in_the_report(tmp_path: Path, make_picture: Make) -> None:
    make_picture("cat.png")
    for name in ("dog.txt", ".DS_Store", "notes.md"):
        (tmp_path / "dataset" / name).touch()
    assert read(tmp_path).skipped == (
        ".DS_Store is neither a picture nor a caption.",
        "dog.txt is a caption without picture.",
        "notes.md is neither a picture nor a caption.",
    )


def test_the_report_counts_and_warns(tmp_path: Path, make_picture: Make) -> None:
    for number in range(6):
        make_picture(f"{number}.png", size=(256, 256), caption=f"caption {number}")
    make_picture("small.png", size=(60, 30), mode="RGBA")
    make_picture("wide.png", size=(300, 150))
    dataset = read(tmp_path)
    cuts = [cut_for(picture.size_px, bucket_sizes(128)) for picture in dataset.pictures]
    report = dataset_report(dataset, cuts)
    assert report.pictures == 8
    assert report.bucket_sizes == {"128x128": 6, "160x96": 2}
    assert report.captions == tuple(f"caption {number}" for number in range(5))
    assert report.caption_sources == {".txt": 8}
    assert report.sizes_px == {"smallest": "60x30", "median": "256x256", "largest": "256x256"}
    assert (report.repeated, report.regularisation_pictures) == (8, 0)
    assert report.warnings == ("1 pictures are smaller than their bucket size and were enlarged: small.png.",)


def test_kohyas_folders_say_repeats_and_class(tmp_path: Path, make_picture: Make) -> None:
    make_picture("10_ohwx cat/a.png", caption=None)
    make_picture("10_ohwx cat/b.png", caption="sitting")
    make_picture("1_a_b/c.png", caption=None)  # all behind the first _
    for name in ("d.png", "photos/e.png", "0_off/f.png", "10_ohwx cat/old/g.png"):
        make_picture(name)
    dataset = read(tmp_path, layout="kohya")
    assert [(p.name, p.repeats, p.caption, p.caption_source) for p in dataset.pictures] == [
        ("10_ohwx cat/a.png", 10, "ohwx cat", "class tokens"),
        ("10_ohwx cat/b.png", 10, "sitting", ".txt"),
        ("1_a_b/c.png", 1, "a_b", "class tokens"),
    ]
    nowhere = "lies in no folder named like 10_name, which is all that the kohya layout reads"
    assert {line for line in dataset.skipped if ".png" in line} == {
        f"d.png {nowhere}.",
        f"photos/e.png {nowhere}.",
        f"0_off/f.png {nowhere}.",
        "10_ohwx cat/old/g.png lies deeper than 10_ohwx cat, where the kohya layout reads nothing.",
    }
    assert dataset.warnings == (
        "2 pictures without caption have the name of their folder for one: 10_ohwx cat/a.png, 1_a_b/c.png.",
    )


def test_a_year_is_no_number_of_repeats(tmp_path: Path, make_picture: Make) -> None:
    make_picture("2023_holiday/a.png")
    make_picture("7/b.png", caption=None)  # repeats without class
    assert faults(tmp_path, layout="kohya") == [
        "2023_holiday/a.png lies in 2023_holiday, which asks for 2023 repeats: the limit is 1000.",
        "7/b.png has no caption: write b.txt beside it, or set captions.missing.",
    ]


def test_repeats_go_by_the_deepest_folder(tmp_path: Path, make_picture: Make) -> None:
    for name in ("a.png", "x/b.png", "x/y/c.png", "xx/d.png"):
        make_picture(name)
    dataset = read(tmp_path, repeats=(("x/y", 5), ("x", 2)))
    assert [picture.repeats for picture in dataset.pictures] == [1, 2, 5, 1]
    assert faults(tmp_path, repeats=(("z", 2),)) == ["repeats names z, but no picture lies there."]


def test_a_metadata_file_gives_captions_and_goes_before_others(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png", caption="from a.txt")
    make_picture("sub/b.png", caption=None)
    make_picture("sub/c.png", caption="from c.txt")
    folder = tmp_path / "dataset"
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one\u2028two"}\n')
    (folder / "sub" / "metadata.jsonl").write_text('\n{"file_name": "./b.png", "text": "from sub", "id": 3}\n')
    dataset = read(tmp_path, "ohwx")
    assert [(p.caption, p.caption_source) for p in dataset.pictures] == [
        ("ohwx, one two", "metadata.jsonl"),
        ("ohwx, from sub", "metadata.jsonl"),
        ("ohwx, from c.txt", ".txt"),
    ]
    assert dataset.skipped == ("a.txt is not used, because metadata.jsonl is there.",)


def test_a_metadata_file_at_fault_is_named_with_its_line(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png")
    lines = [
        '{"file_name": "a.png", "text": "a"}',
        '{"file_name": "a.png", "text": "again"}',
        '{"file_name": "b.png", "text": "b"}',
        '{"file_name": "../a.png", "text": "outside"}',
        '{"file_name": "a.txt", "text": "no picture"}',
        '{"file_name": "a.png", "caption": "a"}',
        '{"text": "a"}',
        "[" * 100_000,
    ]
    (tmp_path / "dataset" / "metadata.jsonl").write_text("\n".join(lines))
    told = faults(tmp_path)
    assert told[:6] == [
        "metadata.jsonl, line 2, names a.png again.",
        "metadata.jsonl, line 3, names b.png, but there is no such picture.",
        "metadata.jsonl, line 4, names ../a.png, but there is no such picture.",
        "metadata.jsonl, line 5, names a.txt, but there is no such picture.",
        "metadata.jsonl, line 6, has no text, only file_name, caption.",
        'metadata.jsonl, line 7, has no file_name: write {"file_name": "cat.jpg", "text": "a cat"}.',
    ]
    assert told[6].startswith("metadata.jsonl, line 8, is not JSON")


def test_regularisation_pictures_are_read_beside_the_others(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png", caption="sitting")
    make_picture("../regularisation/1_cat/b.png", caption=None)
    make_picture("../regularisation/c.png")
    regularisation = RegularisationConfig(str(tmp_path / "regularisation"), "kohya", 0.5)
    dataset = read(tmp_path, "ohwx cat", regularisation=regularisation)
    assert [(p.name, p.caption, p.regularisation) for p in dataset.pictures] == [
        ("a.png", "ohwx cat, sitting", False),
        ("regularisation/1_cat/b.png", "cat", True),  # without the trigger
    ]
    assert [line.split()[0] for line in dataset.skipped] == ["regularisation/c.png", "regularisation/c.txt"]
    report = dataset_report(dataset, [cut_for(p.size_px, bucket_sizes(64)) for p in dataset.pictures])
    assert (report.pictures, report.regularisation_pictures, report.captions) == (1, 1, ("ohwx cat, sitting",))
    make_picture("../regularisation/1_cat/b.png", caption=None).write_bytes(b"")
    make_picture("a.png", caption=None).with_suffix(".txt").unlink()
    told = faults(tmp_path, regularisation=regularisation)
    assert told[0].startswith("a.png has no caption")
    assert told[1].startswith("regularisation/1_cat/b.png cannot be decoded")


def test_a_webdataset_sample_is_what_has_the_same_name_up_to_its_first_dot(tmp_path: Path, make_picture: Make) -> None:
    make_picture("000/a.jpg", caption="a")
    make_picture("000/a.depth.png", caption=None)  # goes behind the picture that is named by its sample alone
    make_picture("000/b.left.png", caption=None)
    make_picture("001/a.png", caption="another a")  # of another shard
    make_picture("v1.5/c.png", caption="dots in a folder's name")
    for name, content in (("000/b.txt", "b"), ("000/a.json", "{}"), ("000/a.seg.txt", "no caption")):
        (tmp_path / "dataset" / name).write_text(content)
    for name in ("000/a.mask.png", "000/c.mask.png"):
        make_picture(name, mode="L", caption=None)
    dataset = read(tmp_path, layout="webdataset", masks=MasksConfig("folder"))
    assert [(p.name, p.caption, p.mask and p.mask.path.name) for p in dataset.pictures] == [
        ("000/a.jpg", "a", "a.mask.png"),
        ("000/b.left.png", "b", None),
        ("001/a.png", "another a", None),
        ("v1.5/c.png", "dots in a folder's name", None),
    ]
    assert dataset.skipped == (
        "000/a.depth.png is a further picture of the sample 000/a.",
        "000/a.json is neither a picture nor a caption.",
        "000/a.seg.txt is a caption without picture.",
        "000/c.mask.png is a mask without picture, or there is another for it.",
    )
    for name in ("000/b.txt", "000/c.mask.png"):
        (tmp_path / "dataset" / name).unlink()
    assert faults(tmp_path, layout="webdataset") == [
        "000/b.left.png has no caption: write b.txt beside it, or set captions.missing."
    ]

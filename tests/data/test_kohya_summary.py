"""A dataset's tags, folders and bucket sizes are counted as sd-scripts counts them, of what is trained alone."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker.data import kohya_summary as module
from worker.data.buckets import bucket_sizes, cut_for
from worker.data.config import DatasetConfig, RegularisationConfig
from worker.data.dataset import Dataset, read_dataset
from worker.data.held_out import hold_out
from worker.data.kohya_summary import LEFT_OUT, kohya_summary


def put(folder: Path, name: str, caption: str, size: tuple[int, int] = (64, 64)) -> None:
    """A picture that looks like no other, with its caption."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = list(f"{folder.name}/{name}".encode())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(file)
    file.with_suffix(".txt").write_text(caption)


def summary(dataset: Dataset, name: str = "cats") -> tuple[dict[str, str], dict[str, Any]]:
    """The entries as they are, and those that are JSON, read."""
    sizes = bucket_sizes(64)
    told = kohya_summary(dataset, [cut_for(picture.size_px, sizes) for picture in dataset.pictures], name)
    return told, {key: json.loads(value) for key, value in told.items() if value.startswith("{")}


def test_a_kohya_folder_is_told_as_sd_scripts_tells_it(tmp_path: Path) -> None:
    put(tmp_path, "10_ohwx cat/1.png", "Ohwx cat, sitting , sofa,")
    put(tmp_path, "10_ohwx cat/2.png", "ohwx cat, sofa, sofa", (128, 32))
    put(tmp_path, "2_dog/1.png", "dog", (40, 40))
    told, read = summary(read_dataset(DatasetConfig(str(tmp_path), layout="kohya")))
    assert read["ss_tag_frequency"] == {
        "10_ohwx cat": {"ohwx cat": 2, "sitting": 1, "sofa": 3},  # small letters, every time that it stands there
        "2_dog": {"dog": 1},
    }
    assert read["ss_dataset_dirs"] == {
        "10_ohwx cat": {"n_repeats": 10, "img_count": 2},
        "2_dog": {"n_repeats": 2, "img_count": 1},
    }
    assert (told["ss_num_train_images"], told["ss_num_reg_images"]) == ("22", "0")
    buckets = read["ss_bucket_info"]["buckets"].values()
    assert {tuple(each["resolution"]): each["count"] for each in buckets} == {(64, 64): 12, (128, 32): 10}
    assert read["ss_bucket_info"]["mean_img_ar_error"] == 0
    assert LEFT_OUT not in told


def test_pictures_in_no_folder_have_the_datasets_name_and_the_trigger(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "a cat", (100, 64))
    put(tmp_path, "cats/2.png", "a cat, asleep")
    told, read = summary(read_dataset(DatasetConfig(str(tmp_path), trigger="ohwx", repeats=(("cats", 3),))))
    assert read["ss_tag_frequency"] == {
        "cats (2)": {"ohwx": 1, "a cat": 1},
        "cats": {"ohwx": 1, "a cat": 1, "asleep": 1},
    }
    assert read["ss_dataset_dirs"]["cats"] == {"n_repeats": 3, "img_count": 1}
    assert told["ss_num_train_images"] == "4"
    assert read["ss_bucket_info"]["mean_img_ar_error"] == abs(64 / 64 - 100 / 64) / 2


def test_regularisation_stands_apart_and_what_is_held_out_nowhere(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / "own", f"{number}.png", f"own, number {number}")
    put(tmp_path / "other", "5_shape/1.png", "shape")
    config = DatasetConfig(
        str(tmp_path / "own"), regularisation=RegularisationConfig(str(tmp_path / "other"), layout="kohya")
    )
    dataset = hold_out(read_dataset(config), 2, None)
    told, read = summary(dataset)
    assert read["ss_tag_frequency"].keys() == {"cats", "regularisation/5_shape"}
    assert next(iter(read["ss_tag_frequency"])) == "cats", "who looks for a trigger looks at the first alone"
    assert read["ss_tag_frequency"]["cats"]["own"] == 4
    for picture in dataset.held_out:
        assert picture.caption.partition(", ")[2] not in read["ss_tag_frequency"]["cats"]
    assert read["ss_dataset_dirs"] == {"cats": {"n_repeats": 1, "img_count": 4}}
    assert read["ss_reg_dataset_dirs"] == {"regularisation/5_shape": {"n_repeats": 5, "img_count": 1}}
    counts = ("ss_num_train_images", "ss_num_reg_images", "ss_num_validation_images")
    assert [told[key] for key in counts] == ["4", "5", "2"]
    assert sum(each["count"] for each in read["ss_bucket_info"]["buckets"].values()) == 4 + 5


def test_a_header_stays_small_and_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        put(tmp_path, f"{number % 3}/{number:02}.png", f"often, {'x' * 40} {number}")
    monkeypatch.setattr(module, "MAX_TAGS_BYTES", 600)
    told, read = summary(read_dataset(DatasetConfig(str(tmp_path))))
    frequency = read["ss_tag_frequency"]
    assert len(told["ss_tag_frequency"]) < 1200
    assert frequency.keys() == {"0", "1", "2"}
    assert all(tags["often"] == 10 for tags in frequency.values())
    shown = sum(map(len, frequency.values()))
    assert 3 < shown < 33
    assert told[LEFT_OUT].startswith(f"{33 - shown} of 33 tags, the rarest first, and 0 of 3 folders")

    monkeypatch.setattr(module, "MAX_TAGS_BYTES", 31)  # two folders
    told, read = summary(read_dataset(DatasetConfig(str(tmp_path))))
    assert read["ss_tag_frequency"] == {"0": {"often": 10}, "1": {}}
    assert read["ss_dataset_dirs"].keys() == {"0", "1"}
    assert told[LEFT_OUT].startswith("32 of 33 tags, the rarest first, and 1 of 3 folders")


def test_the_largest_dataset_gives_a_header_that_the_format_allows(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "a cat")
    (one,) = read_dataset(DatasetConfig(str(tmp_path))).pictures
    many = [
        module.Picture(one.path, f"{'ä' * 200}{n}/{n}.png", one.sha256, (64, 64), f"{'ö' * 500}, {n}")
        for n in range(20_000)
    ]
    told, read = summary(Dataset(tuple(many), (), ()))
    assert sum(map(len, told.values())) < 10 * module.MAX_TAGS_BYTES
    assert LEFT_OUT in told
    counted = Counter(tag for tags in read["ss_tag_frequency"].values() for tag in tags)
    assert counted["ö" * 500] > 100

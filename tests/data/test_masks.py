"""A mask follows its picture through resizing and cutting, down to the latents."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from worker.data.buckets import Cut, cut_for
from worker.data.config import DatasetConfig, MasksConfig, RegularisationConfig
from worker.data.dataset import read_dataset
from worker.data.encoding import Latents, Shot
from worker.data.examples import shots_of, view_of
from worker.data.masks import mask_of_latents
from worker.data.report import dataset_report
from worker.errors import DatasetInvalid

Make = Callable[..., Path]
SQUARE = Cut((64, 64), (64, 64), 0, 0, (64, 64))


def half(size: tuple[int, int], colour: int = 255) -> Image.Image:
    """Black on the left, white on the right."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((size[0] // 2, 0, *size), fill=colour)
    return mask


def test_a_latent_weighs_the_mean_of_its_pixels() -> None:
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((8, 0, 11, 63), fill=255)  # half of the second column of latents
    ours = mask_of_latents(mask, SQUARE, 0.0)
    assert ours.shape == (1, 8, 8)
    theirs = torch.zeros(1, 8, 8)
    theirs[:, :, 1] = 0.5
    assert torch.equal(ours, theirs)


def test_a_mask_is_cut_as_its_picture() -> None:
    cut = cut_for((400, 200), [(64, 64)])  # 128 x 64, the middle 64 stay
    ours = mask_of_latents(half((400, 200)), cut, 0.0)
    assert torch.equal(ours, torch.cat([torch.zeros(1, 8, 4), torch.ones(1, 8, 4)], dim=2))


def test_the_background_may_weigh_something() -> None:
    ours = mask_of_latents(half((64, 64)), SQUARE, 0.25)
    assert ours.unique().tolist() == [0.25, 1.0]
    assert torch.equal(mask_of_latents(Image.new("L", (64, 64)), SQUARE, 0.25), torch.full((1, 8, 8), 0.25))


def test_a_picture_of_which_nothing_is_left_is_refused() -> None:
    mask = Image.new("L", (400, 200))
    ImageDraw.Draw(mask).rectangle((0, 0, 50, 200), fill=255)  # all of it cut off
    with pytest.raises(DatasetInvalid, match="nothing left to learn"):
        mask_of_latents(mask, cut_for((400, 200), [(64, 64)]), 0.0)


def test_masks_are_found_by_name_and_the_rest_is_told(tmp_path: Path, make_picture: Make) -> None:
    for name in ("a.jpg", "sub/b.png", "c.png"):
        make_picture(name)
    for name in ("masks/a.png", "masks/sub/b.png", "masks/sub/other.png"):
        make_picture(name, mode="L", caption=None)
    config = DatasetConfig(str(tmp_path / "dataset"), masks=MasksConfig("folder"))
    dataset = read_dataset(config)
    assert [(p.name, p.mask and p.mask.path.name) for p in dataset.pictures] == [
        ("a.jpg", "a.png"),
        ("c.png", None),
        ("sub/b.png", "b.png"),
    ]
    assert dataset.warnings == ("1 pictures without mask are learned whole: c.png.",)
    assert dataset.skipped == ("masks/sub/other.png is a mask without picture, or there is another for it.",)
    assert dataset_report(dataset, [SQUARE] * 3).masked == 2


def test_masks_at_fault_are_named(tmp_path: Path, make_picture: Make) -> None:
    for name in "abc":
        make_picture(f"{name}.png")
    make_picture("masks/a.png", size=(96, 63), caption=None)
    make_picture("masks/b.png", caption=None).write_bytes(b"")
    Image.new("RGBA", (96, 64)).save(tmp_path / "dataset/masks/c.png")
    with pytest.raises(DatasetInvalid) as caught:
        read_dataset(DatasetConfig(str(tmp_path / "dataset"), masks=MasksConfig("folder")))
    told = str(caught.value).splitlines()
    assert told[1] == "masks/a.png has 96x63 px, but a.png has 96x64: make them equal."
    assert told[2].startswith("masks/b.png cannot be decoded")
    assert told[3] == "masks/c.png is a mask with transparency: save it in grey, white where it is to be learned."


def test_an_alpha_channel_is_a_mask_of_the_pictures_alone(tmp_path: Path, make_picture: Make) -> None:
    image = Image.open(make_picture("a.png", size=(64, 64))).convert("RGBA")
    image.putalpha(half((64, 64)))
    image.save(tmp_path / "dataset/a.png")
    make_picture("b.png", size=(64, 64))
    regularisation = RegularisationConfig(str(tmp_path / "dataset"))
    config = DatasetConfig(str(tmp_path / "dataset"), masks=MasksConfig("alpha"), regularisation=regularisation)
    dataset = read_dataset(config)
    assert [bool(picture.mask) for picture in dataset.pictures] == [True, False, False, False]
    shots = shots_of(dataset, [SQUARE] * 4, flip=True)
    views = [view_of(shot, Latents(torch.zeros(4, 8, 8), torch.ones(4, 8, 8)), config) for shot in shots]
    right = torch.cat([torch.zeros(1, 8, 4), torch.ones(1, 8, 4)], dim=2)
    assert views[0].mask is not None
    assert views[1].mask is not None
    assert torch.equal(views[0].mask, right)
    assert torch.equal(views[1].mask, right.flip(-1))  # mirrored with its picture
    assert [view.mask for view in views[2:]] == [None] * 6
    assert [view.spread for view in views] == [None] * 8  # the mean is trained
    assert isinstance(shots[0], Shot)


def test_a_picture_that_is_masked_whole_is_named(tmp_path: Path, make_picture: Make) -> None:
    make_picture("a.png")
    make_picture("masks/a.png", caption=None)
    Image.new("L", (96, 64)).save(tmp_path / "dataset/masks/a.png")
    config = DatasetConfig(str(tmp_path / "dataset"), masks=MasksConfig("folder"))
    dataset = read_dataset(config)
    shot = Shot(dataset.pictures[0], cut_for((96, 64), [(96, 64)]))
    with pytest.raises(DatasetInvalid, match=r"^a\.png is masked whole"):
        view_of(shot, Latents(torch.zeros(4, 8, 12), torch.zeros(4, 8, 12)), config)

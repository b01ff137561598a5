"""Every kind of picture becomes upright 8-bit RGB, or is refused with what to do about it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.data.pictures import open_picture
from worker.errors import DatasetInvalid

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_opaque_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    file = "a.jpg" if mode == "CMYK" else "a.png"
    opened = open_picture(saved(Image.new("RGB", (8, 8), WHITE).convert(mode), tmp_path / file))
    assert opened.image.mode == "RGB"
    assert opened.image.getpixel((3, 3)) == WHITE
    assert bool(opened.notes) == (mode == "CMYK")


def test_transparency_is_laid_on_white_and_noted(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    opened = open_picture(saved(image, tmp_path / "a.png"))
    assert (opened.image.getpixel((0, 0)), opened.image.getpixel((1, 1))) == (WHITE, RED)
    assert opened.notes == ("with transparency were laid on white",)


def test_an_alpha_channel_that_hides_nothing_is_dropped_without_a_note(tmp_path: Path) -> None:
    opened = open_picture(saved(Image.new("RGBA", (4, 4), (0, 255, 0, 255)), tmp_path / "a.png"))
    assert opened.image.getpixel((0, 0)) == GREEN
    assert opened.notes == ()


def test_a_transparent_palette_colour_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((2, 2), 1)
    opened = open_picture(saved(image, tmp_path / "a.png", transparency=0))
    assert (opened.image.getpixel((0, 0)), opened.image.getpixel((2, 2))) == (WHITE, BLUE)


def test_sixteen_bit_grey_is_reduced_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    opened = open_picture(saved(Image.fromarray(values), tmp_path / "a.png"))
    assert [opened.image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), WHITE]
    assert opened.notes == ("with 16 bit were reduced to 8",)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), RED)
    exif = image.getexif()
    exif[0x0112] = 6  # Orientation: turn a quarter clockwise to see it upright
    opened = open_picture(saved(image, tmp_path / "a.jpg", exif=exif))
    assert opened.image.size == (8, 16)


def test_a_phones_jpeg_with_further_views_is_a_picture(tmp_path: Path) -> None:
    views = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    opened = open_picture(saved(views[0], tmp_path / "a.jpg", format="MPO", save_all=True, append_images=views[1:]))
    red, _, blue = opened.image.getpixel((8, 8))  # type: ignore[misc]
    assert red > 200 > 60 > blue


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    path = saved(frames[0], tmp_path / "a", format=form, save_all=True, append_images=frames[1:])
    with pytest.raises(DatasetInvalid, match=r"is animated \(3 frames\): save the frame"):
        open_picture(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, form: str, kept: float) -> None:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, form)
    content = buffer.getvalue()
    path = tmp_path / "a"
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(DatasetInvalid, match=r"cannot be decoded \(.*\): export it again"):
        open_picture(path)


def test_another_format_under_a_known_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="cannot be decoded"):
        open_picture(saved(Image.new("RGB", (8, 8)), tmp_path / "a.png", format="GIF"))


@pytest.mark.parametrize("size", [(10_000, 8_100), (10_000, 9_000), (20_000, 18_001)])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # to write it
    path = saved(Image.new("1", size), tmp_path / "a.png")
    monkeypatch.undo()
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(DatasetInvalid, match=r"pixels.*: make it smaller"):
        open_picture(path)

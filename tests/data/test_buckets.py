"""Bucket sizes keep area and steps; a picture loses as little as its closest shape allows."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from worker.data.buckets import Cut, bucket_sizes, cut_for, pixel_values

RESOLUTIONS = [64, 128, 256, 480, 512, 544, 640, 768, 1024, 1536]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_sizes_keep_to_steps_area_and_sides(resolution: int) -> None:
    sizes = bucket_sizes(resolution)
    step = 64 if resolution >= 512 and resolution % 64 == 0 else 32
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        assert width % step == 0
        assert height % step == 0
        assert width * height <= resolution**2
        assert resolution / 2 <= min(width, height)
        assert max(width, height) <= 2 * resolution
        assert (height, width) in sizes
        assert width * (height + step) > resolution**2 or height + step > 2 * resolution  # none is smaller than need be


def test_sizes_at_1024_hold_those_that_sdxl_is_used_at() -> None:
    # Of the table in appendix I of https://arxiv.org/abs/2307.01952, the ones about square.
    known = {(768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024), (1152, 896), (1216, 832), (1344, 768)}
    assert known <= set(bucket_sizes(1024))


def test_steps_may_be_chosen() -> None:
    assert all(side % 64 == 0 for size in bucket_sizes(256, 64) for side in size)
    assert any(side % 64 for size in bucket_sizes(1024, 32) for side in size)
    assert set(bucket_sizes(1024, 64)) == set(bucket_sizes(1024))
    assert len(bucket_sizes(1024, 32)) > len(bucket_sizes(1024, 64))
    with pytest.raises(ValueError, match="resolution is 96, but must be a multiple of 64: use 64"):
        bucket_sizes(96, 64)


@pytest.mark.parametrize("resolution", [0, 16, 100, -32])
def test_a_resolution_off_the_steps_is_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match=rf"resolution is {resolution}, but must be a multiple of 32: use \d+"):
        bucket_sizes(resolution)


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [
        ((4000, 4000), (1024, 1024)),
        ((3000, 4000), (896, 1152)),
        ((1920, 1080), (1344, 768)),
        ((100, 10_000), (512, 2048)),
    ],
)
def test_the_closest_shape_is_chosen(picture: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert cut_for(picture, bucket_sizes(1024)).bucket_px == bucket


def test_a_cut_covers_its_bucket_from_the_middle() -> None:
    sizes = bucket_sizes(256)
    source = np.random.default_rng(0)
    for width, height in source.integers(1, 3000, (500, 2)).tolist():
        cut = cut_for((width, height), sizes)
        resized, bucket = cut.resized_px, cut.bucket_px
        assert cut.bucket_px in sizes
        assert resized[0] >= bucket[0]
        assert resized[1] >= bucket[1]
        assert resized[0] == bucket[0] or resized[1] == bucket[1]  # no larger than it must be
        assert 0 <= resized[0] - bucket[0] - 2 * cut.left_px <= 1
        assert 0 <= resized[1] - bucket[1] - 2 * cut.top_px <= 1


def test_the_mirrored_cut_is_the_same_part_of_the_mirrored_picture() -> None:
    cut = Cut(original_px=(301, 200), resized_px=(301, 200), left_px=86, top_px=36, bucket_px=(128, 128))
    assert cut.mirrored().left_px == 301 - 128 - 86
    values = np.random.default_rng(0).integers(0, 256, (200, 301, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    ours = pixel_values(ImageOps.mirror(image), cut.mirrored())
    torch.testing.assert_close(ours, pixel_values(image, cut).flip(-1), rtol=0, atol=1e-6)  # float32 rounding


def test_time_ids_are_height_before_width() -> None:
    cut = Cut(original_px=(300, 200), resized_px=(150, 100), left_px=11, top_px=2, bucket_px=(128, 96))
    assert cut.time_ids().tolist() == [200, 300, 2, 11, 96, 128]


def test_pixel_values_are_the_middle_scaled_to_one() -> None:
    image = Image.new("RGB", (400, 200), (0, 0, 0))
    image.paste((255, 255, 255), (100, 0, 300, 200))  # the square that remains
    values = pixel_values(image, cut_for(image.size, [(64, 64)]))
    assert (values.shape, values.dtype) == ((3, 64, 64), torch.float32)
    assert torch.equal(values[:, :, 8:-8], torch.ones(3, 64, 48))
    black = pixel_values(Image.new("RGB", (64, 64)), cut_for((64, 64), [(64, 64)]))
    assert torch.equal(black, -torch.ones(3, 64, 64))


def test_a_picture_of_its_buckets_size_is_not_resampled() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    ours = pixel_values(Image.fromarray(values), cut_for((96, 64), [(96, 64)]))  # [3, h, w]
    theirs = torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # float32 rounding


def test_a_long_strip_is_cut_without_being_enlarged_whole() -> None:
    image = Image.new("RGB", (2, 60_000), (255, 0, 0))  # would be 512 x 15,360,000
    values = pixel_values(image, cut_for(image.size, bucket_sizes(1024)))
    assert values.shape == (3, 2048, 512)

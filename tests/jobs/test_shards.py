"""A range of shards is every address in it, or a fault that says how to write one."""

import pytest

from jobs.shards import MAX_SHARDS, is_sharded, shards


def test_a_range_keeps_its_zeros_and_its_ends():
    told = shards("s3://b/d/cats-{008..011}.tar")
    assert told == [f"s3://b/d/cats-{number}.tar" for number in ("008", "009", "010", "011")]
    assert shards("s3://b/{9..10}.tar.gz") == ["s3://b/9.tar.gz", "s3://b/10.tar.gz"]
    assert shards("s3://b/{3..3}.zip") == ["s3://b/3.zip"]


def test_what_has_no_braces_is_itself():
    assert shards("s3://b/cats.tar") == ["s3://b/cats.tar"]
    assert not is_sharded("s3://b/cats.tar")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/cats-{000..007}",
        "s3://b/cats-{000..007}/a.tar",
        "s3://b/cats-{a..c}.tar",
        "s3://b/cats-{0..1}-{0..1}.tar",
        "s3://b/cats-{0,1}.tar",
        "s3://b/cats-}0..1{.tar",
        "s3://b/cats-{0..1.tar",
        "s3://{0..1}.tar",
        "file:///b/cats-{0..1}.tar",
    ],
)
def test_what_is_no_range_of_archives_is_refused(uri: str):
    with pytest.raises(ValueError, match="is no range of archives in a bucket: write one like"):
        shards(uri)


@pytest.mark.parametrize("numbers", ["7..3", f"0..{MAX_SHARDS}", "000..7", "0..99999999999999999999"])
def test_a_range_that_counts_down_or_too_far_is_refused(numbers: str):
    with pytest.raises(ValueError, match="counts up to no more than"):
        shards(f"s3://b/{{{numbers}}}.tar")

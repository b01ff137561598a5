"""Addresses, and which of them a spec may name."""

import pytest

from jobs.errors import UriNotAllowed
from jobs.uri import S3Uri, allowed_folder, check_bucket_allowed


def test_an_address_is_taken_apart_and_put_together():
    uri = S3Uri.parse("s3://outputs/ginger cat/%2e")

    assert (uri.bucket, uri.key) == ("outputs", "ginger cat/%2e")
    assert str(uri / "lora.safetensors") == "s3://outputs/ginger cat/%2e/lora.safetensors"
    assert str(S3Uri.parse("s3://outputs") / "a") == "s3://outputs/a"


@pytest.mark.parametrize("uri", ["http://x/y", "s3://", "s3:///key", "s3://b/../c", "s3://b/a/./c"])
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(UriNotAllowed):
        S3Uri.parse(uri)


def test_a_bucket_that_is_not_open_is_refused_by_name():
    with pytest.raises(UriNotAllowed, match=r"secrets.*LORAQ_BUCKETS"):
        check_bucket_allowed(S3Uri.parse("s3://secrets/x"), ("outputs",))


def test_a_folder_outside_those_opened_is_refused_also_through_a_link(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    opened = (tmp_path / "open",)

    assert allowed_folder(f"file://{tmp_path}/open/cats", opened) == tmp_path / "open" / "cats"
    for name in ("closed", "open/../closed", "open/link", "open/%2e%2e/closed"):
        with pytest.raises(UriNotAllowed):
            allowed_folder(f"file://{tmp_path}/{name}", opened)
    with pytest.raises(UriNotAllowed, match="no folder at all"):
        allowed_folder(f"file://{tmp_path}/open", ())

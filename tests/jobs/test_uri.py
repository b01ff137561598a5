"""Addresses, and which of them a spec may name."""

import pytest

from jobs.errors import UriNotAllowed
from jobs.settings import Settings
from jobs.uri import S3Uri, allowed_folder, check_readable, check_writable


def test_an_address_is_taken_apart_and_put_together():
    uri = S3Uri.parse("s3://outputs/ginger cat/%2e")

    assert (uri.bucket, uri.key) == ("outputs", "ginger cat/%2e")
    assert str(uri / "lora.safetensors") == "s3://outputs/ginger cat/%2e/lora.safetensors"
    assert str(S3Uri.parse("s3://outputs") / "a") == "s3://outputs/a"


@pytest.mark.parametrize("uri", ["http://x/y", "s3://", "s3:///key", "s3://b/../c", "s3://b/a/./c"])
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(UriNotAllowed):
        S3Uri.parse(uri)


@pytest.mark.parametrize("uri", ["s3://datasets/alice/cats/", "s3://datasets/alice", "s3://models/x.safetensors"])
def test_an_owner_may_read_below_the_folders_that_are_open(uri):
    check_readable(S3Uri.parse(uri), Settings(), "alice")


@pytest.mark.parametrize(
    "uri", ["s3://secrets/x", "s3://datasets/bob/cats/", "s3://datasets/alice2/", "s3://datasets/", "s3://datasets"]
)
def test_another_owner_s_folder_is_refused_with_those_that_are_open(uri):
    with pytest.raises(UriNotAllowed, match=r"alice may read: s3://datasets/alice/, .*LORAQ_READABLE"):
        check_readable(S3Uri.parse(uri), Settings(), "alice")
    with pytest.raises(UriNotAllowed, match=r"alice may write: s3://outputs/alice/ \(LORAQ_WRITABLE"):
        check_writable(S3Uri.parse(uri), Settings(), "alice")


def test_a_setting_that_is_no_folder_is_refused():
    for wrong in ("outputs", "s3://outputs/{job}/", "https://outputs/"):
        with pytest.raises(ValueError, match="is no folder"):
            Settings(writable=(wrong,))
    assert Settings().buckets == ("datasets", "models", "outputs")


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

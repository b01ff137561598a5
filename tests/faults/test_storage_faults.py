"""Whatever the object store or the network does: retried with limits, gone on from where it broke, never half there."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs import download, object_stream
from jobs.download import PART_BYTES
from jobs.errors import CredentialsExpired, DiskFull, FailureReason, StorageUnavailable
from jobs.retries import RetryPolicy
from jobs.storage import Storage
from jobs.uri import S3Uri
from tests.faults.proxy import FaultProxy
from worker.scratch import collect, scratch_folder

pytestmark = pytest.mark.integration

FOLDER = S3Uri.parse("s3://datasets/faults/")
SMALL = os.urandom(300_000)
LARGE = os.urandom(2 * PART_BYTES + 12_345)


@pytest.fixture
def proxy(s3_server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def faulty(proxy, make_settings, monkeypatch, storage) -> Storage:
    """A client whose requests go through the proxy, and that waits less between its tries."""
    monkeypatch.setattr(object_stream, "_WAITS", RetryPolicy(wait_s_first=0.01))
    storage.write(FOLDER / "small", SMALL)
    return Storage(make_settings(s3_endpoint_url=proxy.url, s3_stall_s=1.5))


@pytest.fixture
def large() -> S3Uri:
    return FOLDER / "large"


@pytest.mark.parametrize("kind", ["InternalError", "ServiceUnavailable", "SlowDown", "ExpiredToken", "reset", "stall"])
def test_a_download_outlasts_two_bad_answers(proxy, faulty, tmp_path, kind):
    with proxy.fault(kind, method="GET", times=2):
        faulty.download(FOLDER / "small", tmp_path / "small")

    assert (tmp_path / "small").read_bytes() == SMALL
    assert proxy.hit == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("small")] == ["small"]


@pytest.mark.parametrize("kind", ["truncate", "reset_body", "trickle"])
def test_a_body_that_breaks_off_is_asked_for_from_there_on(proxy, faulty, tmp_path, kind):
    with proxy.fault(kind, method="GET", times=2, after_bytes=100_000):
        faulty.download(FOLDER / "small", tmp_path / "small")

    assert (tmp_path / "small").read_bytes() == SMALL
    starts = [int(part.removeprefix("bytes=").partition("-")[0] or 0) for *_, part in proxy.requests]
    assert starts[0] == 0
    assert starts[1] >= 90_000  # a reset may lose what was under way
    assert starts == sorted(starts)


def test_one_byte_a_second_for_ever_is_given_up_and_leaves_no_file(proxy, faulty, tmp_path):
    started_s = time.monotonic()
    with proxy.fault("trickle", method="GET"), pytest.raises(StorageUnavailable, match="too slow"):
        faulty.download(FOLDER / "small", tmp_path / "small")

    assert time.monotonic() - started_s < 60
    assert not (tmp_path / "small").exists()


def test_small_reads_and_hashes_see_a_truncated_body(proxy, faulty):
    with proxy.fault("truncate", method="GET", times=1, after_bytes=10):
        assert faulty.read(FOLDER / "small") == SMALL
    with proxy.fault("truncate", method="GET", times=1, after_bytes=100_000):
        assert faulty.sha256(FOLDER / "small") == hashlib.sha256(SMALL).hexdigest()


@pytest.mark.parametrize("kind", ["trickle", "truncate", "reset_body"])
def test_a_listing_that_trickles_or_breaks_off_is_asked_for_again(proxy, faulty, storage, kind):
    started_s = time.monotonic()
    with proxy.fault(kind, method="GET", path="list-type", times=2, after_bytes=100):
        listed = faulty.list(FOLDER)

    assert listed == storage.list(FOLDER)
    assert proxy.hit == 2
    assert time.monotonic() - started_s < 60  # at five bytes a second it would take longer


def test_what_never_comes_ends_with_the_reason_and_expired_credentials_with_theirs(proxy, faulty, tmp_path):
    with (
        proxy.fault("truncate", method="GET"),
        pytest.raises(StorageUnavailable, match="broke off at byte 0 of 300000"),
    ):
        faulty.download(FOLDER / "small", tmp_path / "small")
    with proxy.fault("ExpiredToken"), pytest.raises(CredentialsExpired, match="Renew"):
        faulty.download(FOLDER / "small", tmp_path / "small")
    assert CredentialsExpired.reason is FailureReason.STORAGE_DENIED


def test_a_large_download_goes_on_with_the_missing_parts_in_another_process(proxy, faulty, storage, tmp_path, large):
    storage.write(large, LARGE)
    with proxy.fault("truncate", method="GET", path="large") as fault:
        fault.after_bytes = 1000  # each try brings so much, and there are fewer than it takes
        with pytest.raises(StorageUnavailable):
            faulty.download(large, tmp_path / "large")
    assert not (tmp_path / "large").exists()
    moved: list[int] = []

    faulty.download(large, tmp_path / "large", moved.append)

    assert (tmp_path / "large").read_bytes() == LARGE
    assert sum(moved) <= 2 * PART_BYTES + 12_345
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("large")] == ["large"]


def test_parts_that_came_are_not_asked_for_again(proxy, faulty, storage, tmp_path, large):
    storage.write(large, LARGE)
    part = tmp_path / "large.part"
    part.write_bytes(LARGE[:PART_BYTES])
    head = storage.stat(large)
    version = object_stream.Version(head.size_bytes, head.modified_at)
    download.Journal(version=version, done=[0]).save(tmp_path / "large.parts")
    moved: list[int] = []

    faulty.download(large, tmp_path / "large", moved.append)

    assert (tmp_path / "large").read_bytes() == LARGE
    assert sum(moved) == len(LARGE) - PART_BYTES


def test_parts_of_another_version_are_not_mixed(faulty, storage, tmp_path, large):
    storage.write(large, LARGE)
    (tmp_path / "large.part").write_bytes(bytes(len(LARGE)))
    head = storage.stat(large)
    download.Journal(version=object_stream.Version(head.size_bytes + 1, head.modified_at), done=[0, 1]).save(
        tmp_path / "large.parts"
    )

    faulty.download(large, tmp_path / "large")

    assert (tmp_path / "large").read_bytes() == LARGE


def test_a_smaller_object_in_the_place_of_the_one_that_was_begun_is_fetched_anew(faulty, storage, tmp_path):
    storage.write(FOLDER / "shrunk", SMALL)
    (tmp_path / "shrunk.part").write_bytes(bytes(PART_BYTES))
    larger = object_stream.Version(3 * PART_BYTES, storage.stat(FOLDER / "shrunk").modified_at)
    download.Journal(version=larger, done=[0]).save(tmp_path / "shrunk.parts")

    faulty.download(FOLDER / "shrunk", tmp_path / "shrunk")

    assert (tmp_path / "shrunk").read_bytes() == SMALL


def test_an_object_that_changes_while_it_is_fetched_is_refused(proxy, faulty, storage, tmp_path):
    storage.write(FOLDER / "changing", SMALL)
    changed = False

    def change(_bytes: int) -> None:
        nonlocal changed
        if not changed and _bytes:
            changed = True
            storage.write(FOLDER / "changing", SMALL[:200_000])

    broken = proxy.fault("truncate", method="GET", times=1, after_bytes=100_000)
    with broken, pytest.raises(StorageUnavailable, match="changed while it was fetched"):
        faulty.download(FOLDER / "changing", tmp_path / "changing", change)


@pytest.mark.parametrize("kind", ["InternalError", "SlowDown", "reset", "stall"])
def test_an_upload_outlasts_bad_answers(proxy, faulty, storage, tmp_path, kind):
    (tmp_path / "file").write_bytes(SMALL)
    with proxy.fault(kind, method="PUT", times=2):
        faulty.upload(tmp_path / "file", FOLDER / kind)

    assert storage.read(FOLDER / kind) == SMALL


def test_a_full_object_store_is_named(proxy, faulty, tmp_path):
    (tmp_path / "file").write_bytes(SMALL)
    with proxy.fault("InsufficientStorage", method="PUT"), pytest.raises(DiskFull, match="no room"):
        faulty.upload(tmp_path / "file", FOLDER / "full")


def test_a_full_disk_here_is_named(faulty, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.os, "pwrite", full)
    with pytest.raises(DiskFull, match="LORAQ_DATA_DIR"):
        faulty.download(FOLDER / "small", tmp_path / "small")
    assert DiskFull.reason is FailureReason.DISK_FULL


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_cancel_ends_a_transfer_that_hangs(proxy, faulty, make_settings, tmp_path, direction):
    patient = Storage(make_settings(s3_endpoint_url=proxy.url, s3_stall_s=30.0))
    cancelled = threading.Event()
    threading.Timer(1.0, cancelled.set).start()

    def check(_bytes: int) -> None:
        if cancelled.is_set():
            raise InterruptedError

    (tmp_path / "file").write_bytes(SMALL)
    move = {
        "up": partial(patient.upload, tmp_path / "file", FOLDER / "hangs", check),
        "down": partial(patient.download, FOLDER / "small", tmp_path / "small", check),
    }[direction]
    started_s = time.monotonic()
    with proxy.fault("stall"), pytest.raises(InterruptedError):
        move()
    assert time.monotonic() - started_s < 6


def test_multipart_uploads_that_were_left_are_ended(storage):
    client = storage._client
    client.create_multipart_upload(Bucket="outputs", Key="faults/left/a")
    client.create_multipart_upload(Bucket="outputs", Key="faults/other/b")

    assert storage.abort_uploads(S3Uri.parse("s3://outputs/faults/left/")) == 1
    assert storage.abort_uploads(S3Uri.parse("s3://outputs/faults/left/")) == 0
    assert storage.abort_uploads(S3Uri.parse("s3://outputs/faults/other/")) == 1


def test_scratch_of_a_killed_attempt_is_collected_and_of_a_living_one_not(tmp_path: Path):
    if (child := os.fork()) == 0:
        with scratch_folder(tmp_path, "dead-") as folder:
            (folder / "file").write_bytes(SMALL)
            os._exit(0)  # as SIGKILL would: nothing is cleaned up
    os.waitpid(child, 0)
    (dead,) = tmp_path.glob("dead-*[!k]")
    with scratch_folder(tmp_path, "living-") as living:
        assert not dead.exists()
        assert collect(tmp_path) == 0
        assert living.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_uploaded_file_is_read_back(storage):
    storage.write(FOLDER / "empty", b"")
    assert storage.sha256(FOLDER / "empty") == hashlib.sha256(b"").hexdigest()

"""Downloads: whole or not at all, taken from the cache, and gone when room is needed, but never in use."""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.errors import DiskFull, StorageUnavailable
from jobs.uri import S3Uri
from worker import disk
from worker.archives import ArchiveInvalid
from worker.downloads import Downloads

pytestmark = pytest.mark.integration

ROOT = S3Uri.parse("s3://datasets/downloads/")

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def put(storage):
    def put_object(name: str, data: bytes):
        storage.write(ROOT / name, data)
        return storage.stat(ROOT / name)

    return put_object


def ignore(_bytes: int) -> None:
    pass


def test_a_second_fetch_moves_no_bytes_and_a_changed_object_is_another_entry(tmp_path, storage, put):
    moved: list[int] = []
    first = put("a/one.txt", b"one")
    with Downloads(tmp_path, storage, 1 << 20) as downloads:
        entry = downloads.fetch([first], ROOT, moved.append)
        assert (entry / "a" / "one.txt").read_bytes() == b"one"
        assert sum(moved) == 3
        assert downloads.fetch([first], ROOT, moved.append) == entry
        assert sum(moved) == 3
        changed = put("a/one.txt", b"other")
        assert (downloads.fetch([changed], ROOT, moved.append) / "a" / "one.txt").read_bytes() == b"other"


def test_of_two_that_fetch_at_once_one_downloads(tmp_path, storage, put):
    objects = [put("together/one.txt", b"1" * 1000)]
    moved: list[int] = []

    def fetch(_: int) -> bytes:
        with Downloads(tmp_path, storage, 1 << 20) as downloads:
            return (downloads.fetch(objects, ROOT, moved.append) / "together" / "one.txt").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, range(4))) == {b"1" * 1000}
    assert sum(moved) == 1000


def test_a_broken_download_leaves_no_entry_and_goes_on_where_it_stopped(tmp_path, storage, put):
    objects = [put("b/one.txt", b"1" * 100), put("b/two.txt", b"2" * 100)]
    storage.write(ROOT / "b/two.txt", b"it changed meanwhile")
    with Downloads(tmp_path, storage, 1 << 20) as downloads:
        with pytest.raises(StorageUnavailable, match="changed meanwhile"):
            downloads.fetch(objects, ROOT, ignore)
        assert not [entry for entry in tmp_path.iterdir() if entry.is_dir() and entry.suffix != ".partial"]

        storage.write(ROOT / "b/two.txt", b"2" * 100)
        moved: list[int] = []
        downloads.fetch(objects, ROOT, moved.append)
        assert sum(moved) == 100  # the first file was whole already


def test_what_the_disk_cannot_take_is_refused_before_a_byte_is_asked_for(tmp_path, storage, put, monkeypatch):
    objects = [put("full/one.txt", b"1" * 1000)]
    moved: list[int] = []
    # As much room as the file needs, less one byte.
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: DiskUsage(0, 0, disk.SPARE_BYTES + 999))
    with Downloads(tmp_path, storage, 1 << 20) as downloads:
        with pytest.raises(DiskFull, match="LORAQ_DATA_DIR"):
            downloads.fetch(objects, ROOT, moved.append)
        assert moved == []

        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: DiskUsage(0, 0, disk.SPARE_BYTES + 1000))
        downloads.fetch(objects, ROOT, moved.append)
    assert sum(moved) == 1000


def test_old_entries_give_way_and_those_in_use_do_not(tmp_path, storage, put):
    objects = [[put(f"c/{name}", name.encode() * 600)] for name in "xyz"]
    with Downloads(tmp_path, storage, max_bytes=700) as earlier:
        old = earlier.fetch(objects[0], ROOT, ignore)
    with Downloads(tmp_path, storage, max_bytes=700) as downloads:
        in_use = downloads.fetch(objects[1], ROOT, ignore)
        downloads.fetch(objects[2], ROOT, ignore)

        assert not old.exists()
        assert in_use.exists()


def test_an_entry_that_another_attempt_uses_is_used_at_once(tmp_path, storage, put):
    objects = [put("e/one.txt", b"one")]
    with Downloads(tmp_path, storage, 1 << 20) as busy:
        entry = busy.fetch(objects, ROOT, ignore)

        def waits(_bytes: int) -> None:
            raise AssertionError("It waits for the other attempt to end.")

        with Downloads(tmp_path, storage, 1 << 20) as second:
            assert second.fetch(objects, ROOT, waits) == entry


def test_an_archive_is_unpacked_once_and_one_that_is_none_is_not_kept(tmp_path, storage, put):
    made: list[str] = []

    def unpack(archive, to):
        made.append(archive.name)
        if archive.read_bytes() == b"no archive":
            raise ArchiveInvalid("it is none")
        to.mkdir()
        (to / "inside.txt").write_text("inside")

    good, bad = put("d/good.zip", b"archive"), put("d/bad.zip", b"no archive")
    with Downloads(tmp_path, storage, 1 << 20) as downloads:
        entry = downloads.fetch([good], ROOT / "d/", ignore, unpack)
        assert [path.name for path in entry.iterdir()] == ["inside.txt"]
        assert downloads.fetch([good], ROOT / "d/", ignore) != entry
        with pytest.raises(ArchiveInvalid):
            downloads.fetch([bad], ROOT / "d/", ignore, unpack)
    with Downloads(tmp_path, storage, 1 << 20) as downloads:
        assert downloads.fetch([good], ROOT / "d/", ignore, unpack) == entry
    assert made == ["good.zip", "bad.zip"]
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 2

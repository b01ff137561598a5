"""Archives: what is in them comes out, and whatever is no plain file in the folder, or too much, is refused by name."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import DiskFull
from worker import archives, disk
from worker.archives import CHUNK_BYTES, ArchiveInvalid, unpack

FILES = {"cat.jpg": os.urandom(5000), "deep/folder/cat.txt": b"a cat"}
GIB = 1 << 30


def ignore(_bytes: int) -> None:
    pass


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("empty")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


MAKERS: list[tuple[str, Callable[[Path, dict[str, bytes]], Path]]] = [
    ("x.zip", make_zip),
    ("x.tar", make_tar),
    ("x.tar.gz", make_tar),
    ("x.tgz", make_tar),
]


@pytest.fixture(params=MAKERS, ids=[name for name, _ in MAKERS])
def make(request, tmp_path) -> Callable[[dict[str, bytes]], Path]:
    name, maker = request.param
    return lambda files: maker(tmp_path / name, files)


def refused(archive: Path, match: str, max_bytes: int = GIB) -> None:
    with pytest.raises(ArchiveInvalid, match=match):
        unpack(archive, archive.with_name("out"), max_bytes, ignore)


def test_files_come_out_under_their_names_without_what_systems_add(make, tmp_path):
    moved: list[int] = []
    unpack(make(FILES | {"__MACOSX/._cat.jpg": b"x", "deep/.DS_Store": b"x"}), tmp_path / "out", GIB, moved.append)

    out = tmp_path / "out"
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == FILES
    assert sum(moved) == 5005


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "a//b", "a\\..\\b", "a\nb", "x" * 256])
def test_a_path_that_leads_elsewhere_is_refused(make, tmp_path, name):
    refused(make({name: b"x"}), "no path inside a folder")
    assert not (tmp_path / "escaped").exists()
    assert not Path("/escaped").exists()


def test_more_than_the_limit_is_refused_whatever_the_archive_says_of_itself(make):
    refused(make({"a": os.urandom(600), "b": os.urandom(600)}), "LORAQ_MAX_DATASET_GIB", max_bytes=1000)


def test_a_bomb_is_refused_long_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_COUNTS_FROM_BYTES", 1 << 20)
    for name, maker in MAKERS:
        if name != "x.tar":
            moved: list[int] = []
            with pytest.raises(ArchiveInvalid, match="no archive of pictures"):
                unpack(maker(tmp_path / name, {"zeros": bytes(50 << 20)}), tmp_path / f"{name}-out", GIB, moved.append)
            assert sum(moved) < 20 << 20


def test_too_many_files_are_refused(make, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    refused(make({str(n): b"" for n in range(4)}), "more than 3 files")


def test_nothing_in_it_twice_and_a_file_where_a_folder_is(make, tmp_path):
    refused(make({}), "holds no file")
    shutil.rmtree(tmp_path / "out")
    refused(make({"./a": b"1", "a": b"2"}), "twice")
    shutil.rmtree(tmp_path / "out")
    refused(make({"a": b"1", "a/b": b"2"}), "same name|damaged")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path / "x.tar", "'link', a link or device")


def test_a_link_in_a_zip_and_an_encrypted_one_are_refused(tmp_path):
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    refused(tmp_path / "x.zip", "'link', a link or device")

    data = bytearray(make_zip(tmp_path / "y.zip", {"a": b"x"}).read_bytes())
    for signature, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.rfind(signature)
        data[at + flags_at] |= 1
    (tmp_path / "y.zip").write_bytes(data)
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path / "y.zip", "encrypted")


def test_a_header_of_gigabytes_is_not_read_into_memory(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 4 << 30
    (tmp_path / "x.tgz").write_bytes(gzip.compress(member.tobuf() + bytes(1 << 20)))
    refused(tmp_path / "x.tgz", "header of 4294967296 bytes")


@pytest.mark.parametrize("keep", [100, 3000, 5632, 6144])  # of a tar: in a header, in data, and between two files
def test_a_truncated_archive_is_refused(make, keep):
    path = make(FILES)
    data = path.read_bytes()
    path.write_bytes(data[: min(keep, len(data) - 40)])
    refused(path, "damaged")


def test_a_damaged_header_behind_the_first_is_not_taken_for_the_end(tmp_path):
    path = make_tar(tmp_path / "x.tar", FILES)
    data = bytearray(path.read_bytes())
    data[5632 + 20] ^= 255  # the second file's header begins behind 512 + 5,120 bytes
    path.write_bytes(data)
    refused(path, "damaged")


def test_a_full_disk_is_named(make, monkeypatch, tmp_path):
    archive = make({"a": os.urandom(CHUNK_BYTES * 4), "b": b""})
    monkeypatch.setattr(archives, "CHECK_ROOM_EVERY_BYTES", CHUNK_BYTES)
    moved: list[int] = []
    monkeypatch.setattr(disk, "SPARE_BYTES", disk.shutil.disk_usage(tmp_path).free - GIB)

    def fill(count: int) -> None:
        moved.append(count)
        monkeypatch.setattr(disk, "SPARE_BYTES", 1 << 60)  # as if a neighbour took what was left

    with pytest.raises(DiskFull, match="LORAQ_DATA_DIR"):
        unpack(archive, tmp_path / "out", GIB, fill)
    assert sum(moved) == CHUNK_BYTES  # not only between two files


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_unpacked_but_never_a_crash(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    name, maker = data.draw(st.sampled_from(MAKERS))
    path = maker(folder / name, FILES)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        unpack(path, folder / "out", GIB, ignore)
    except ArchiveInvalid:
        pass
    finally:
        assert {p.name for p in folder.iterdir()} <= {name, "out"}
        shutil.rmtree(folder)

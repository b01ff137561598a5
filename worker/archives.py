"""Unpacks a dataset's archive: plain files only, inside the folder, within limits of number, size and ratio.

What an archive says of itself is not believed: bytes are counted as they come.
"""

import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

from jobs.errors import FailureReason, LoraqError
from worker.disk import check_room

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")

MAX_FILES = 100_000
MAX_RATIO = 100
"""Unpacked bytes for each byte of the archive. Pictures hardly shrink; captions by ten at most."""

RATIO_COUNTS_FROM_BYTES = 64 << 20
MAX_HEADER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18
CHECK_ROOM_EVERY_BYTES = 64 << 20
_JUNK = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$|\._)")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")

Member = tuple[str, Callable[[], IO[bytes]]]


class ArchiveInvalid(LoraqError):
    """The archive cannot be unpacked, or holds what a dataset may not hold."""

    code = "archive_invalid"
    reason = FailureReason.DATASET_INVALID


def is_archive(name: str) -> bool:
    """Whether a name ends as an archive's does."""
    return name.lower().endswith(ARCHIVE_ENDINGS)


def without_ending(name: str) -> str:
    """The name of an archive without what says that it is one: v1.0-007 of v1.0-007.tar.gz."""
    ending = next(each for each in ARCHIVE_ENDINGS if name.lower().endswith(each))
    return name[: -len(ending)]


def unpack(archive: Path, to: Path, max_bytes: int, on_bytes: Callable[[int], None]) -> int:
    """Unpack `archive` into the new folder `to`.

    Args:
        max_bytes: limit of what comes out.
        on_bytes: called often, with the bytes that came since; may raise to end it. `to` is then half there.

    Returns:
        How many bytes came out.

    Raises:
        ArchiveInvalid: it is damaged, encrypted, holds what a dataset may not hold, or is larger than a limit.
        DiskFull: less than 1 GiB would be left on the disk.
    """
    to.mkdir(parents=True)
    check_room(to, 0, archive.name)
    checked_bytes = 0
    packed_bytes = archive.stat().st_size
    total_bytes, seen = 0, set[str]()
    with ExitStack() as held:
        members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
        try:
            for name, open_member in members(archive, held):
                if _JUNK.search(name):
                    continue
                path = to / _checked(archive, name, seen)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as source, path.open("wb") as target:
                    while chunk := source.read(CHUNK_BYTES):
                        total_bytes += len(chunk)
                        _check_size(archive, total_bytes, packed_bytes, max_bytes)
                        if total_bytes - checked_bytes >= CHECK_ROOM_EVERY_BYTES:
                            check_room(to, 0, archive.name)
                            checked_bytes = total_bytes
                        target.write(chunk)
                        on_bytes(len(chunk))
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            gzip.BadGzipFile,
            EOFError,
            NotADirectoryError,
        ) as error:
            raise _invalid(f"{archive.name} is damaged ({error}): make it again.") from error
        except (FileExistsError, IsADirectoryError) as error:
            raise _invalid(f"{archive.name} holds a file and a folder of the same name ({error.filename}).") from error
    if not seen:
        raise _invalid(f"{archive.name} holds no file.")
    return total_bytes


def _zip_members(archive: Path, held: ExitStack) -> Iterator[Member]:
    opened = held.enter_context(zipfile.ZipFile(archive))
    for each in opened.infolist():
        if each.is_dir():
            continue
        kind = stat.S_IFMT(each.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _invalid(f"{archive.name} holds {each.filename!r}, a link or device: pack plain files only.")
        if each.flag_bits & 1:
            raise _invalid(f"{archive.name} is encrypted: pack it without a password.")
        yield each.filename, lambda each=each: _open_zipped(archive, opened, each)


def _open_zipped(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return opened.open(member)
    except RuntimeError as error:  # a method of compression that zipfile does not know
        raise _invalid(f"{archive.name}: {member.filename!r} cannot be unpacked ({error}): use deflate.") from error


def _tar_members(archive: Path, held: ExitStack) -> Iterator[Member]:
    plain = archive.name.lower().endswith(".tar")
    source = held.enter_context(archive.open("rb") if plain else gzip.GzipFile(archive))
    bounded = cast(Any, _Bounded(source, archive.name))
    opened = held.enter_context(tarfile.TarFile(fileobj=bounded))
    for each in opened:
        if each.isdir():
            continue
        if not each.isreg() or each.issparse():
            raise _invalid(f"{archive.name} holds {each.name!r}, a link or device: pack plain files only.")
        yield each.name, lambda each=each: cast(IO[bytes], opened.extractfile(each))
    if bounded.newest != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header behind the first for the end
        raise tarfile.ReadError("it ends without the mark that ends an archive")


class _Bounded:
    """A file for tarfile, which reads a header whole, however large it says to be. `newest` is what was read last."""

    def __init__(self, source: Any, name: str) -> None:
        self._source = source
        self._name = name
        self.seek = source.seek
        self.tell = source.tell
        self.newest = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise _invalid(f"{self._name} has a header of {size} bytes, the limit is {MAX_HEADER_BYTES}.")
        self.newest = self._source.read(size)
        return self.newest


def _checked(archive: Path, name: str, seen: set[str]) -> str:
    """The member's path in the folder, if it is one."""
    parts = name.removeprefix("./").split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or _FORBIDDEN.search(name):
        raise _invalid(f"{archive.name} holds {name!r}, which is no path inside a folder: rename it and pack it again.")
    path = "/".join(parts)
    if path in seen:
        raise _invalid(f"{archive.name} holds {name!r} twice: pack it again.")
    seen.add(path)
    if len(seen) > MAX_FILES:
        raise _invalid(f"{archive.name} holds more than {MAX_FILES} files: make several datasets of it.")
    return path


def _check_size(archive: Path, total_bytes: int, packed_bytes: int, max_bytes: int) -> None:
    if total_bytes > max_bytes:
        raise _invalid(
            f"{archive.name} unpacks to more than {max_bytes / 2**30:g} GiB, the limit (LORAQ_MAX_DATASET_GIB)."
        )
    if total_bytes > RATIO_COUNTS_FROM_BYTES and total_bytes > MAX_RATIO * packed_bytes:
        raise _invalid(
            f"{archive.name} unpacks to more than {MAX_RATIO} times its size: that is no archive of pictures."
        )


def _invalid(message: str) -> ArchiveInvalid:
    return ArchiveInvalid(f"dataset.uri: {message}")

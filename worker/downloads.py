"""Base models and datasets from the bucket, kept on this machine by what they are, up to a limit.

An entry is named by a hash over the names, sizes and times of its objects: a changed object is another entry. It is
filled under `<entry>.partial` and renamed when whole, so a broken download goes on where it stopped, file by file.
Workers that share the folder take turns by a lock per entry, exclusive to fill or drop it, shared to use it.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TextIO

from jobs.errors import StorageError, StorageUnavailable
from jobs.storage import Storage, StoredObject
from jobs.uri import S3Uri
from worker import telemetry
from worker.archives import ArchiveInvalid, without_ending
from worker.disk import check_room, has_room

log = logging.getLogger(__name__)

OnBytes = Callable[[int], None]
Unpack = Callable[[Path, Path], None]


class Downloads:
    """A folder of downloaded entries, the least recently used of which give way; entries in use never do.

    A context manager: what was fetched stays in use until it is left.
    """

    def __init__(self, folder: Path, storage: Storage, max_bytes: int) -> None:
        self.folder = folder
        self._storage = storage
        self._max_bytes = max_bytes
        self._in_use = ExitStack()
        self._fetched: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._in_use.close()

    def fetch(self, objects: list[StoredObject], root: S3Uri, on_bytes: OnBytes, unpack: Unpack | None = None) -> Path:
        """A local folder with `objects` under their names below `root`; from the cache if they are there.

        Args:
            on_bytes: called with the bytes that came since the last call, also while waiting; may raise to end it.
            unpack: makes the entry, a folder that is not there yet, out of the one object that was downloaded; of
                several objects each makes a folder in the entry, named as it is without its ending.

        Raises:
            whatever `unpack` raises.
            StorageError: the store fails.
            DiskFull: there is no room.
        """
        entry = self.folder / _entry_name(objects, unpack is not None)
        if entry in self._fetched:  # our own shared lock would keep us from the exclusive one
            return entry
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:  # a fetch that fails lets go of its lock
            lock = held.enter_context(entry.with_suffix(".lock").open("w"))
            telemetry.tell("cache", hit=entry.exists())
            while True:
                there = entry.exists()
                if not _try_lock(lock, fcntl.LOCK_SH if there else fcntl.LOCK_EX):
                    on_bytes(0)
                    time.sleep(0.5)  # another worker is downloading or dropping the same entry
                    continue
                if not entry.exists():
                    if there:
                        continue  # it was dropped between the look and the lock
                    partial = self._download(objects, root, entry, on_bytes)
                    if unpack is not None:
                        partial = _unpacked(partial, [_name(each, root) for each in objects], entry, unpack)
                    partial.rename(entry)
                os.utime(entry)
                fcntl.flock(lock, fcntl.LOCK_SH)
                if entry.exists():  # else it was dropped between the two locks
                    break
            self._in_use.push(held.pop_all())
        self._fetched.add(entry)
        return entry

    def _download(self, objects: list[StoredObject], root: S3Uri, entry: Path, on_bytes: OnBytes) -> Path:
        """Fill `<entry>.partial`, and return it."""
        partial = entry.with_suffix(".partial")
        missing = [each for each in objects if not _is_whole(partial / _name(each, root), each)]
        need_bytes = sum(each.size_bytes for each in missing)
        self._make_room(need_bytes)
        log.info("Downloading %d files, %.1f MB, from %s", len(missing), need_bytes / 1e6, root)
        partial.mkdir(exist_ok=True)
        self._storage.download_all(((each.uri, partial / _name(each, root)) for each in missing), on_bytes)
        for each in missing:
            if not _is_whole(partial / _name(each, root), each):
                raise StorageUnavailable(
                    f"{each.uri} came with another size than listed: it changed meanwhile. Try again."
                )
        return partial

    def _make_room(self, need_bytes: int) -> None:
        entries = sorted((e for e in self.folder.iterdir() if e.is_dir()), key=lambda e: e.stat().st_mtime)
        held_bytes = sum(_size_bytes(entry) for entry in entries)
        for entry in entries:
            if held_bytes + need_bytes <= self._max_bytes and has_room(self.folder, need_bytes):
                return
            with entry.with_suffix(".lock").open("w") as lock:
                if _try_lock(lock, fcntl.LOCK_EX):
                    log.info("Dropping %s from the cache to make room", entry.name)
                    held_bytes -= _size_bytes(entry)
                    shutil.rmtree(entry)
        check_room(self.folder, need_bytes, "the download")


def _unpacked(partial: Path, names: list[str], entry: Path, unpack: Unpack) -> Path:
    """A folder with what the objects in `partial` hold. What is no archive is not kept for another try."""
    unpacked = entry.with_suffix(".unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        for name in names:
            unpack(partial / name, unpacked if len(names) == 1 else unpacked / without_ending(name))
    except BaseException as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        if isinstance(error, ArchiveInvalid):
            shutil.rmtree(partial)
        raise
    shutil.rmtree(partial)
    return unpacked


def _entry_name(objects: Iterable[StoredObject], unpacked: bool) -> str:
    listing = "\n".join(f"{each.uri} {each.size_bytes} {each.modified_at.isoformat()}" for each in objects)
    return hashlib.sha256(f"{listing}{' unpacked' if unpacked else ''}".encode()).hexdigest()[:32]


def _name(each: StoredObject, root: S3Uri) -> str:
    """Path of an object below `root`. S3Uri.parse refused .., but a listing may still hold such keys."""
    name = each.uri.key.removeprefix(root.key)
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise StorageError(f"{each.uri} cannot be a file's name: rename the object.")
    return name


def _is_whole(path: Path, each: StoredObject) -> bool:
    return path.exists() and path.stat().st_size == each.size_bytes


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _try_lock(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""A folder for one attempt, gone afterwards. Those of attempts that were killed go at the next start."""

import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def scratch_folder(root: Path, prefix: str) -> Generator[Path]:
    """A new folder in `root`, held by a lock that ends with this process however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    collect(root)
    folder = root / f"{prefix}{secrets.token_hex(4)}"
    lock_path = folder.with_name(f"{folder.name}.lock")
    with _locked(lock_path):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)


def collect(root: Path) -> int:
    """Delete the folders in `root` whose process has ended. Returns how many there were."""
    collected = 0
    for lock_path in root.glob("*.lock"):
        with lock_path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process lives
            folder = lock_path.with_suffix("")
            if folder.exists():
                log.info("Deleting %s, which an attempt that was killed has left", folder)
                collected += 1
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
    return collected


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a lock file. It is made anew if another process took it for a dead one's before it was locked."""
    while True:
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return

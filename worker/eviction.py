"""A limit for a folder of files any of which may be deleted at any time: those that were used least recently go."""

import logging
import time
from pathlib import Path

log = logging.getLogger(__name__)

BEING_WRITTEN_S = 3600
"""A hidden file that is younger may still be written; an older one was left by a process that was killed."""


def make_room(folder: Path, max_bytes: int) -> int:
    """Delete files below `folder`, those with the oldest times first, until all together have no more than `max_bytes`.

    Several processes may do so at once.

    Returns:
        How many were deleted.
    """
    files: list[tuple[float, int, Path]] = []
    for path in folder.rglob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # another worker was faster
        if path.is_file() and not (path.name.startswith(".") and time.time() - stat.st_mtime < BEING_WRITTEN_S):
            files.append((stat.st_mtime, stat.st_size, path))
    held_bytes = sum(size for _, size, _ in files)
    deleted = 0
    for _, size, path in sorted(files):
        if held_bytes <= max_bytes:
            break
        path.unlink(missing_ok=True)
        held_bytes -= size
        deleted += 1
    if deleted:
        log.info("Deleted %d cached encodings that were used least recently", deleted)
    return deleted

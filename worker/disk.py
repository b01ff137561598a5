"""Room on the worker's disk: looked at before it is used, and some is always left."""

import shutil
from pathlib import Path

from jobs.errors import DiskFull

SPARE_BYTES = 1 << 30
"""What downloads and archives leave free."""


def has_room(folder: Path, need_bytes: int) -> bool:
    """Whether the disk of `folder` can take so much, with SPARE_BYTES left."""
    return shutil.disk_usage(folder).free >= need_bytes + SPARE_BYTES


def check_room(folder: Path, need_bytes: int, what: str) -> None:
    """Raise DiskFull unless the disk of `folder` can take `need_bytes` of `what`."""
    if not has_room(folder, need_bytes):
        free_bytes = shutil.disk_usage(folder).free
        raise DiskFull(
            f"The worker's disk has {free_bytes / 2**30:.1f} GiB free at {folder}, but {what} needs "
            f"{need_bytes / 2**30:.1f} GiB and {SPARE_BYTES / 2**30:g} GiB to spare. Free some, or set LORAQ_DATA_DIR "
            "to a larger disk."
        )

"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the name `path` when the block ends well.

    A reader sees the old file or the new one, never a part, also after a kill or a power cut. Two writers at once are
    safe: the last one wins. If the block raises, nothing remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # the data before the name, or a power cut may leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

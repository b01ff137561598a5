"""The two hashes by which AUTOMATIC1111 and sd-scripts know a checkpoint's file.

Source: AUTOMATIC1111/stable-diffusion-webui modules/sd_models.py (model_hash) and modules/hashes.py (calculate_sha256).
"""

import hashlib
from pathlib import Path
from threading import Thread

LEGACY_START, LEGACY_END = 0x100000, 0x110000  # all that the old hash looks at


def legacy_hash(data: bytes) -> str:
    """The old hash of a file, from its bytes between LEGACY_START and LEGACY_END, or as many as there are."""
    return hashlib.sha256(data).hexdigest()[:8]


class CheckpointHashes:
    """Hashes a file in a thread of its own: SDXL's 7 GB take seconds, which is nothing beside a training.

    The thread dies with the process, so that a training which is stopped does not wait for it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: tuple[str, str] | None = None
        self._thread = Thread(target=self._read, name="base model hash", daemon=True)
        self._thread.start()

    def wait(self) -> tuple[str, str] | None:
        """The old hash, eight hexadecimal digits, and the SHA-256 of the whole file; None of a folder."""
        self._thread.join()
        return self._found

    def _read(self) -> None:
        try:
            with self._file.open("rb") as stream:
                stream.seek(LEGACY_START)
                old = legacy_hash(stream.read(LEGACY_END - LEGACY_START))
                stream.seek(0)
                self._found = old, hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:  # a folder, or a file that has gone: what else needs it says so
            self._found = None

"""Latents and text embeddings that another worker has made, from the owner's folder in the bucket, and to it.

The trainer knows their names, which are hashes of all that they were made from, and this process knows the bucket. So
the trainer tells which files its cache lacks and waits for an answer; what cannot be had it makes, and that is uploaded
while it trains. Every file carries its own SHA-256, which the trainer checks: one that was damaged in the bucket is
made anew, and put in its place.

All of it is to save time: nothing here ever fails a job.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from jobs.errors import ObjectNotFound, StorageError
from jobs.storage import PARALLEL_FILES, Storage
from jobs.uri import S3Uri
from worker.atomic import whole_file

log = logging.getLogger(__name__)

FAILURES = 3
"""So many files that the object store does not give or take, and the others are left alone, too."""

OnBytes = Callable[[int], None]


class Encodings:
    """The cache folder of one owner, and its counterpart in the bucket.

    Args:
        folder: the trainer's cache.
        uri: where they lie in the bucket; None: nothing is fetched and nothing put there.
        answer: file that tells the trainer to go on.
    """

    def __init__(self, folder: Path, storage: Storage, uri: S3Uri | None, answer: Path) -> None:
        self.answer = answer
        self._folder = folder
        self._storage = storage
        self._uri = uri
        self._wanted: list[str] = []
        self._fetched: dict[str, int] = {}  # name to number of the file on the disk: one that is replaced has another
        self._uploading: threading.Thread | None = None

    def fetch(self, names: Iterable[str], on_bytes: OnBytes) -> None:
        """Fetch what there is of `names`, paths within the folder, and let the trainer go on.

        Args:
            on_bytes: called often; may raise to end it.
        """
        self._wanted = [name for name in names if _is_plain(name)]
        if self._uri is not None:
            self._each("fetched", self._wanted, self._fetch, on_bytes)
        log.info("Fetched %d of %d encodings from the bucket", len(self._fetched), len(self._wanted))
        self.answer.touch()

    def upload(self) -> None:
        """Begin to put into the bucket what the trainer has made meanwhile, in a thread of its own."""
        made = [name for name in self._wanted if self._number(name) not in (None, self._fetched.get(name))]
        if self._uri is None or not made:
            return
        self._uploading = threading.Thread(
            target=lambda: self._each("uploaded", made, self._put, lambda _: None), name="encodings", daemon=True
        )
        self._uploading.start()

    def finish(self, timeout_s: float) -> bool:
        """Wait until all is uploaded; whether it was within `timeout_s`."""
        if self._uploading is not None:
            self._uploading.join(timeout_s)
        return self._uploading is None or not self._uploading.is_alive()

    def _fetch(self, name: str) -> None:
        assert self._uri is not None
        path = self._folder / name
        try:
            content = self._storage.read(self._uri / name)
        except ObjectNotFound:
            return
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        self._fetched[name] = path.stat().st_ino

    def _put(self, name: str) -> None:
        assert self._uri is not None
        try:
            self._storage.write(self._uri / name, (self._folder / name).read_bytes())
        except FileNotFoundError:
            log.info("Encoding %s has given way to others before it was uploaded", name)

    def _each(self, what: str, names: Iterable[str], move: Callable[[str], None], on_bytes: OnBytes) -> None:
        failures: list[Exception] = []

        def try_to(name: str) -> None:
            if len(failures) >= FAILURES:
                return
            try:
                move(name)
            except (StorageError, OSError) as error:
                failures.append(error)

        pool = ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="encodings")
        try:
            waiting = {pool.submit(try_to, name) for name in names}
            while waiting:
                done, waiting = wait(waiting, timeout=0.5)
                for each in done:
                    each.result()
                on_bytes(0)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            log.warning("Some encodings were not %s, as %s", what, failures[0])

    def _number(self, name: str) -> int | None:
        try:
            return (self._folder / name).stat().st_ino
        except FileNotFoundError:
            return None


def _is_plain(name: str) -> bool:
    """Whether a name stays within the folder. The trainer decodes strangers' bytes: it is not believed."""
    return bool(name) and not any(part in ("", ".", "..") for part in name.split("/")) and "\\" not in name

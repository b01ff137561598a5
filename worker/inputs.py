"""What an attempt needs before it can train: base model, dataset, a LoRA to go on from, all on this machine."""

from collections.abc import Callable
from pathlib import Path

from jobs.errors import FailureReason, LoraqError, ObjectNotFound
from jobs.settings import Settings
from jobs.shards import shards
from jobs.storage import Storage, StoredObject
from jobs.uri import S3Uri, allowed_folder, check_readable
from worker.archives import is_archive, unpack
from worker.downloads import Downloads

MAX_DATASET_FILES = 100_000


class InputMissing(LoraqError):
    """The base model, the dataset or the LoRA to go on from is not where the spec says."""

    code = "input_missing"

    def __init__(self, reason: FailureReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Inputs:
    """Fetches what a spec names, within what the operator opened for its owner."""

    def __init__(self, settings: Settings, storage: Storage, downloads: Downloads, owner: str) -> None:
        self._settings = settings
        self._owner = owner
        self._storage = storage
        self._downloads = downloads

    def base_model(self, uri: str, on_bytes: Callable[[int], None]) -> Path:
        """A .safetensors file or a diffusers folder on this machine.

        Raises:
            InputMissing, StorageError.
        """
        if uri.startswith("file://"):
            return self._local(uri, FailureReason.BASE_MODEL_INVALID, "base_model")
        address = S3Uri.parse(uri)
        if not address.key.endswith((".safetensors", ".ckpt", ".pt")):
            return self._folder(address.folder(), FailureReason.BASE_MODEL_INVALID, "base_model", on_bytes)
        return self._file(address, FailureReason.BASE_MODEL_INVALID, "base_model", on_bytes)

    def adapter(self, uri: str, on_bytes: Callable[[int], None]) -> Path:
        """A LoRA's .safetensors file on this machine.

        Raises:
            InputMissing, StorageError.
        """
        if uri.startswith("file://"):
            return self._local(uri, FailureReason.INVALID_SPEC, "lora.init_from")
        return self._file(S3Uri.parse(uri), FailureReason.INVALID_SPEC, "lora.init_from", on_bytes)

    def dataset(self, uri: str, on_bytes: Callable[[int], None], field: str = "dataset.uri") -> Path:
        """A folder of pictures and captions on this machine; archives are unpacked. `field` is who names it.

        Raises:
            InputMissing, ArchiveInvalid, StorageError.
        """
        if uri.startswith("file://"):
            return self._local(uri, FailureReason.DATASET_INVALID, field)
        if is_archive(uri):
            addresses = [S3Uri.parse(each) for each in shards(uri)]
            archives = [self._object(each, FailureReason.DATASET_INVALID, field) for each in addresses]
            self._check_dataset_size(uri, sum(each.size_bytes for each in archives), field)
            left_bytes = int(self._settings.max_dataset_gib * 2**30)

            def take(path: Path, to: Path) -> None:
                nonlocal left_bytes
                left_bytes -= unpack(path, to, left_bytes, on_bytes)

            return self._downloads.fetch(archives, _folder_of(addresses[0]), on_bytes, take)
        return self._folder(S3Uri.parse(uri).folder(), FailureReason.DATASET_INVALID, field, on_bytes)

    def _folder(self, uri: S3Uri, reason: FailureReason, field: str, on_bytes: Callable[[int], None]) -> Path:
        check_readable(uri, self._settings, self._owner)
        try:
            objects = self._storage.list(uri)
        except ObjectNotFound as error:
            raise InputMissing(reason, f"{field}: {error}") from error
        if not objects:
            raise InputMissing(reason, f"{field}: there is nothing at {uri}. Look at its spelling, or upload it first.")
        if len(objects) > MAX_DATASET_FILES:
            raise InputMissing(
                reason,
                f"{field}: {uri} holds {len(objects)} files, the limit is {MAX_DATASET_FILES}: name a subfolder.",
            )
        if reason is FailureReason.DATASET_INVALID:
            self._check_dataset_size(str(uri), sum(each.size_bytes for each in objects), field)
        return self._downloads.fetch(objects, uri, on_bytes)

    def _file(self, uri: S3Uri, reason: FailureReason, field: str, on_bytes: Callable[[int], None]) -> Path:
        found = self._object(uri, reason, field)
        return self._downloads.fetch([found], _folder_of(uri), on_bytes) / uri.key.rpartition("/")[2]

    def _object(self, uri: S3Uri, reason: FailureReason, field: str) -> StoredObject:
        check_readable(uri, self._settings, self._owner)
        try:
            return self._storage.stat(uri)
        except ObjectNotFound as error:
            raise InputMissing(reason, f"{field}: {error}") from error

    def _check_dataset_size(self, uri: str, size_bytes: int, field: str) -> None:
        limit_gib = self._settings.max_dataset_gib
        if size_bytes > limit_gib * 2**30:
            raise InputMissing(
                FailureReason.DATASET_INVALID,
                f"{field}: {uri} holds {size_bytes / 2**30:.1f} GiB, the limit is {limit_gib:g} "
                "(LORAQ_MAX_DATASET_GIB): make the pictures smaller, or several datasets of it.",
            )

    def _local(self, uri: str, reason: FailureReason, field: str) -> Path:
        path = allowed_folder(uri, self._settings.allowed_folders)
        if not path.exists():
            raise InputMissing(reason, f"{field}: there is nothing at {uri} on the worker.")
        return path


def _folder_of(uri: S3Uri) -> S3Uri:
    return S3Uri(uri.bucket, uri.key.rpartition("/")[0]).folder()

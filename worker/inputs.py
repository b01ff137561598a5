"""What an attempt needs before it can train: the base model and the dataset, on this machine."""

from collections.abc import Callable
from pathlib import Path

from jobs.errors import FailureReason, LoraqError, ObjectNotFound
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uri import S3Uri, allowed_folder, check_bucket_allowed
from worker.downloads import Downloads

MAX_DATASET_FILES = 100_000


class InputMissing(LoraqError):
    """The base model or the dataset is not where the spec says."""

    code = "input_missing"

    def __init__(self, reason: FailureReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Inputs:
    """Fetches what specs name, within what the operator opened."""

    def __init__(self, settings: Settings, storage: Storage, downloads: Downloads) -> None:
        self._settings = settings
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
        check_bucket_allowed(address, self._settings.buckets)
        try:
            model = self._storage.stat(address)
        except ObjectNotFound as error:
            raise InputMissing(FailureReason.BASE_MODEL_INVALID, f"base_model: {error}") from error
        root = S3Uri(address.bucket, address.key.rpartition("/")[0]).folder()
        return self._downloads.fetch([model], root, on_bytes) / address.key.rpartition("/")[2]

    def dataset(self, uri: str, on_bytes: Callable[[int], None]) -> Path:
        """A folder of pictures and captions on this machine.

        Raises:
            InputMissing, StorageError.
        """
        if uri.startswith("file://"):
            return self._local(uri, FailureReason.DATASET_INVALID, "dataset.uri")
        return self._folder(S3Uri.parse(uri).folder(), FailureReason.DATASET_INVALID, "dataset.uri", on_bytes)

    def _folder(self, uri: S3Uri, reason: FailureReason, field: str, on_bytes: Callable[[int], None]) -> Path:
        check_bucket_allowed(uri, self._settings.buckets)
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
        return self._downloads.fetch(objects, uri, on_bytes)

    def _local(self, uri: str, reason: FailureReason, field: str) -> Path:
        path = allowed_folder(uri, self._settings.allowed_folders)
        if not path.exists():
            raise InputMissing(reason, f"{field}: there is nothing at {uri} on the worker.")
        return path

"""The object store: each bucket by doing in it, in a folder that is deleted again, what jobs will do in it."""

# pyright: reportUnknownMemberType=false
# boto3 types its methods in part.

import secrets
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from api.doctor.finding import Finding, Findings
from api.doctor.redis_checks import judge_clock
from jobs.errors import StorageDenied, StorageError
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uri import S3Uri

TIMEOUT_S = 10.0
PART_BYTES = 5 << 20  # the smallest part that S3 allows before the last


def look_at_buckets(settings: Settings, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Look at the store, and at every bucket of the settings if it answers."""
    storage = Storage(settings)
    found = Findings("object store")
    if not _answers(found, _client(storage).meta.endpoint_url, clock):
        return found.all
    looks = [_Bucket(storage, bucket, bucket == settings.datasets_bucket) for bucket in settings.buckets]
    return found.all + [each for bucket in looks for each in bucket.look()]


def _answers(found: Findings, endpoint: str, clock: Callable[[], float]) -> bool:
    """Whether anything answers there; unsigned, so a refusal is an answer."""
    try:
        answer = httpx.get(endpoint, timeout=TIMEOUT_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found.failed("reachable", f"{_host(endpoint)} does not answer ({error}). Look at LORAQ_S3_ENDPOINT_URL.")
        return False
    found.ok("reachable", _host(endpoint))
    if date := answer.headers.get("Date"):
        judge_clock(found, clock() - (parsedate_to_datetime(date).timestamp() + 0.5))  # it tells whole seconds
    else:
        found.skipped("clock", "the server tells no Date")
    return True


class _Bucket:
    """One bucket, looked at once."""

    def __init__(self, storage: Storage, bucket: str, takes_uploads: bool) -> None:
        self._storage = storage
        self._client = _client(storage)
        self._takes_uploads = takes_uploads
        self._found = Findings(f"bucket {bucket}")
        self._folder = S3Uri(bucket, f"loraq-doctor/{secrets.token_hex(8)}/")
        self._small, self._large, self._sent = (self._folder / name for name in ("small", "large", "sent"))
        self._content = secrets.token_bytes(1000)

    def look(self) -> list[Finding]:
        """Look. It stops where nothing can be written."""
        found = self._found
        try:
            self._storage.check(self._folder.bucket)
            found.ok("listing")
        except StorageError as error:
            found.failed("listing", str(error))
            return found.all
        if self._put():
            try:
                self._get()
                self._multipart()
                self._presigned()
                self._listing()
            finally:
                self._clean_up()
        return found.all

    def _put(self) -> bool:
        try:
            self._storage.write(self._small, self._content)
        except StorageDenied as error:
            if self._takes_uploads:
                self._found.failed("put", f"{error} Datasets are uploaded to it.")
            else:
                self._found.warning("put", "the keys may only read. Right for base models, but no job can end here.")
            return False
        except StorageError as error:
            self._found.failed("put", str(error))
            return False
        self._found.ok("put")
        return True

    def _get(self) -> None:
        with self._found.looking("get"):
            _same(self._storage.read(self._small), self._content)
        with self._found.looking("range"):
            answer = self._client.get_object(Bucket=self._small.bucket, Key=self._small.key, Range="bytes=100-199")
            _same(answer["Body"].read(), self._content[100:200])

    def _multipart(self) -> None:
        """In two parts, as large files go."""
        client, bucket, key = self._client, self._large.bucket, self._large.key
        content = self._content * (PART_BYTES // 1000 + 2)
        with self._found.looking("multipart"):
            upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            which = {"Bucket": bucket, "Key": key, "UploadId": upload}
            try:
                etags = [
                    client.upload_part(**which, PartNumber=number, Body=part)["ETag"]
                    for number, part in enumerate((content[:PART_BYTES], content[PART_BYTES:]), 1)
                ]
                parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
                client.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
            except Exception:
                client.abort_multipart_upload(**which)
                raise
            _same(self._storage.read(self._large), content)

    def _presigned(self) -> None:
        """Through the endpoint that users see."""
        explain = "{} That is LORAQ_S3_PUBLIC_ENDPOINT_URL, as this machine reaches it.".format
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as user:
            with self._found.looking("presigned get", explain):
                _same(_taken(user.get(self._storage.presign_get(self._small, 60))).content, self._content)
            with self._found.looking("presigned put", explain):
                url = self._storage.presign_put(self._sent, len(self._content), 60)
                _taken(user.put(url, content=self._content))
                _same(self._storage.read(self._sent), self._content)
                if user.put(url, content=self._content * 2).is_success:
                    raise ValueError("an upload larger than was announced is taken: owners may fill the store.")

    def _listing(self) -> None:
        with self._found.looking("listing of what was put"):
            listed = {each.uri: each.size_bytes for each in self._storage.list(self._folder)}
            if listed.get(self._small) != len(self._content):
                raise ValueError("an object that was just written is not listed, or with another size.")

    def _clean_up(self) -> None:
        """Delete it all, and look whether it is gone: also what a multipart upload may leave."""
        with self._found.looking("delete"):
            self._storage.delete([self._small, self._large, self._sent])
        with self._found.looking("nothing left over"):
            left = [str(each.uri) for each in self._storage.list(self._folder)]
            where = {"Bucket": self._folder.bucket, "Prefix": self._folder.key}
            left += [upload["Key"] for upload in self._client.list_multipart_uploads(**where).get("Uploads", [])]
            if left:
                raise ValueError(f"this stays after it was deleted: {', '.join(left)}.")


def _client(storage: Storage) -> Any:
    """boto3's client, set up as for every job; boto3-stubs do not know keywords that come as a dict."""
    return storage._client  # pyright: ignore[reportPrivateUsage]


def _same(theirs: bytes, ours: bytes) -> None:
    if theirs != ours:
        raise ValueError(f"it gave back {len(theirs)} bytes that are not the {len(ours)} that were written.")


def _taken(answer: httpx.Response) -> httpx.Response:
    """The answer. The URL holds a signature, so it is not repeated."""
    if not answer.is_success:
        raise ValueError(f"{_host(str(answer.url))} answered {answer.status_code}.")
    return answer


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port}" if parts.port else f"{parts.scheme}://{parts.hostname}"

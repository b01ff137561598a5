"""The HTTP API from Python: what the CLI is made of, and what a script can use.

with Loraq("http://127.0.0.1:8000", token) as loraq:
    job = loraq.submit(Path("job.yaml").read_text())
    for event in loraq.events(job.id): ...
    loraq.pull(job.id, Path("out"))
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import httpx
from pydantic import TypeAdapter

from api.schemas import (
    CAPTION_ENDINGS,
    PICTURE_ENDINGS,
    Artifact,
    Artifacts,
    DatasetUpload,
    Job,
    JobEvent,
    JobPage,
    ProblemDetails,
    ValidSpec,
)

PARALLEL_TRANSFERS = 4
RECONNECT_S = 1.0
OUTAGE_PATIENCE_S = 120.0
"""How long a follower keeps trying to reconnect before it gives up."""


class ApiError(Exception):
    """The API refused, and `problem` says why."""

    def __init__(self, problem: ProblemDetails) -> None:
        self.problem = problem
        super().__init__(problem.detail)


class ApiUnavailable(Exception):
    """The API, or the object store behind it, cannot be reached."""


class DamagedDownload(Exception):
    """What was downloaded is not what the manifest names."""


class Loraq:
    """One server, with one owner's token. A context manager; also fine without, for a short script.

    Raises, from every method:
        ApiError: the server refused.
        ApiUnavailable: it does not answer, or only with a gateway's errors.
    """

    def __init__(self, url: str, token: str, timeout_s: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}", "User-Agent": "loraq"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        # Presigned URLs carry their own rights, and the object store must not see the token.
        self._bare = httpx.Client(timeout=httpx.Timeout(timeout_s, read=120.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._bare.close()

    def submit(self, spec: str, idempotency_key: str | None = None) -> Job:
        """Submit a spec, YAML or JSON text. Once this returns, the job is not lost."""
        headers = {"Content-Type": "application/yaml"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        return Job.model_validate_json(self._call("POST", "/v1/jobs", content=spec.encode(), headers=headers))

    def validate(self, spec: str) -> ValidSpec:
        """Check a spec without submitting it."""
        headers = {"Content-Type": "application/yaml"}
        return ValidSpec.model_validate_json(
            self._call("POST", "/v1/jobs:validate", content=spec.encode(), headers=headers)
        )

    def list(self, status: str | None = None, cursor: str | None = None, limit: int = 50) -> JobPage:
        """A page of your jobs, newest first."""
        params = {"status": status, "cursor": cursor, "limit": limit}
        given = {name: value for name, value in params.items() if value is not None}
        return JobPage.model_validate_json(self._call("GET", "/v1/jobs", params=given))

    def get(self, job_id: str) -> Job:
        """One job, with where it stands."""
        return Job.model_validate_json(self._call("GET", f"/v1/jobs/{job_id}"))

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end. One that has ended stays as it is."""
        return Job.model_validate_json(self._call("POST", f"/v1/jobs/{job_id}/cancel"))

    def artifacts(self, job_id: str) -> Artifacts:
        """The files that a job left, each with a presigned URL."""
        return Artifacts.model_validate_json(self._call("GET", f"/v1/jobs/{job_id}/artifacts"))

    def past_events(self, job_id: str, after: str | None = None) -> list[JobEvent]:
        """Events up to now, oldest first, at most 1,000 behind `after`."""
        headers = {"Accept": "application/json"} | ({"Last-Event-ID": after} if after else {})
        raw = self._call("GET", f"/v1/jobs/{job_id}/events", headers=headers)
        return TypeAdapter(list[JobEvent]).validate_json(raw)

    def events(self, job_id: str, after: str | None = None) -> Iterator[JobEvent]:
        """Events as they come, until the job has ended. Reconnects where it stopped, with none lost and none twice."""
        gone_since: float | None = None
        while True:
            try:
                for event in self._stream(job_id, after):
                    after, gone_since = event.id, None
                    yield event
                    if event.final_status is not None:
                        return
                if self.get(job_id).status.final and not self.past_events(job_id, after):
                    return
            except ApiUnavailable:
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > OUTAGE_PATIENCE_S:
                    raise
            time.sleep(RECONNECT_S)

    def upload_dataset(self, folder: Path, name: str, on_file: Callable[[int, int], None] | None = None) -> str:
        """Upload the pictures and captions below `folder`. Returns the URI to put into the spec as dataset.uri.

        Args:
            on_file: called with how many files are up, and how many there are.

        Raises:
            FileNotFoundError: there is no picture in the folder.
        """
        paths = dataset_files(folder)
        files = [{"path": p.relative_to(folder).as_posix(), "size_bytes": p.stat().st_size} for p in paths]
        body = json.dumps({"name": name, "files": files}).encode()
        upload = DatasetUpload.model_validate_json(
            self._call("POST", "/v1/datasets", content=body, headers={"Content-Type": "application/json"})
        )
        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            puts = [pool.submit(self._put, folder / file.path, file.url) for file in upload.files]
            for done, each in enumerate(puts, start=1):
                each.result()
                if on_file is not None:
                    on_file(done, len(puts))
        return upload.uri

    def pull(self, job_id: str, folder: Path, on_file: Callable[[Artifact], None] | None = None) -> list[Path]:
        """Download everything that a job left, verified by SHA-256. Files that are there and whole are left alone.

        Raises:
            DamagedDownload: a file came otherwise than the manifest says.
        """
        artifacts = self.artifacts(job_id)

        def fetch(artifact: Artifact) -> Path:
            path = folder / artifact.path
            if not (path.is_file() and _sha256(path) == artifact.sha256):
                self._download(artifact, path)
            if on_file is not None:
                on_file(artifact)
            return path

        with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            return list(pool.map(fetch, artifacts.files))

    def _call(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str | int] | None = None,
    ) -> bytes:
        try:
            response = self._http.request(method, path, content=content, headers=headers, params=params)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        _raise_for_problem(response)
        return response.content

    def _stream(self, job_id: str, after: str | None) -> Iterator[JobEvent]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx.Timeout(30.0, read=60.0)  # the server sends a comment every 15 s
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    _raise_for_problem(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield JobEvent.model_validate_json(line.removeprefix("data:").strip())
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def _put(self, path: Path, url: str) -> None:
        try:
            self._bare.put(url, content=path.read_bytes()).raise_for_status()
        except httpx.HTTPError as error:
            raise ApiUnavailable(f"{path} could not be uploaded: {error}") from error

    def _download(self, artifact: Artifact, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            with self._bare.stream("GET", artifact.url) as response, part.open("wb") as file:
                response.raise_for_status()
                for block in response.iter_bytes():
                    file.write(block)
        except httpx.HTTPError as error:
            raise ApiUnavailable(f"{artifact.path} could not be downloaded: {error}") from error
        if _sha256(part) != artifact.sha256:
            part.unlink()
            raise DamagedDownload(f"{artifact.path} is not what the manifest names (SHA-256 differs). Pull again.")
        part.replace(path)

    def _unavailable(self, error: httpx.HTTPError) -> ApiUnavailable:
        return ApiUnavailable(f"No answer from {self._http.base_url}: {error or type(error).__name__}.")


def dataset_files(folder: Path) -> "list[Path]":
    """The pictures and captions below `folder`, in order; whatever else lies there is no part of a dataset.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    endings = PICTURE_ENDINGS + CAPTION_ENDINGS
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in endings)
    if not any(path.suffix.lower() in PICTURE_ENDINGS for path in files):
        raise FileNotFoundError(f"There is no picture in {folder} ({', '.join(PICTURE_ENDINGS)}).")
    return files


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = ProblemDetails.model_validate_json(response.content)
    except ValueError:
        raise ApiUnavailable(f"{response.url} answered {response.status_code}, and not as loraq does.") from None
    if problem.status >= 500:
        raise ApiUnavailable(problem.detail)
    raise ApiError(problem)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

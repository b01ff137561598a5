"""The client: what the CLI is made of, and what a program of yours can use.

with Loraq("http://127.0.0.1:8000", token) as loraq:
    dataset = loraq.upload_dataset(Path("photos"))
    job = loraq.submit(spec | {"dataset": {"uri": dataset.uri}})
    loraq.wait(job.id)
    loraq.pull(job.id, Path("results"))
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from api.client_errors import Unavailable, no_answer, raise_for_problem
from api.event_stream import read_data
from api.local_dataset import LocalDataset, read_dataset
from api.schemas import Artifact, Artifacts, DatasetUpload, Job, JobEvent, JobPage, Upload, ValidSpec, WebhookSecret
from api.transfers import all_at_once, fetch_file, put_file
from jobs.spec import JobSpec
from jobs.status import Status

Spec = JobSpec | Mapping[str, Any] | str | bytes
"""A spec as a model, as JSON values, or as YAML text."""

TRIES = 3
PATIENCE_S = 150.0
"""How long a change is asked for again while the API says that its job store does not answer: longer than Redis may be
gone without harm to a job.
"""
QUIET_S = 45.0
"""A stream that is silent for this long is dead: the API sends a comment every 15 s."""

# A proxy that the environment names cannot know what listens on this machine.
_DIRECT: dict[str, httpx.BaseTransport | None] = {"all://127.0.0.1": None, "all://localhost": None}

_EVENTS = TypeAdapter(tuple[JobEvent, ...])


@dataclass(frozen=True)
class UploadedDataset:
    """A dataset that lies in the bucket."""

    uri: str  # for dataset.uri of a spec
    contents: LocalDataset


@dataclass(frozen=True)
class Pulled:
    """The output of a job on this machine."""

    folder: Path
    fetched: tuple[Artifact, ...]
    already_there: tuple[Artifact, ...]


class Loraq:
    """One API, as one owner.

    Every method raises `api.client_errors.ApiError`, or its kind `Unavailable` when the API cannot be reached.

    Args:
        url: where the API is: http://127.0.0.1:8000.
        token: lrq_..., from `loraq token create`.
        timeout_s: how long to wait for an answer.
        patience_s: how long to ask again for a submission, a cancel or a retry that the API cannot take just now.
        on_wait: called once with the reason, when such a request is going to be asked again.
    """

    def __init__(
        self,
        url: str,
        token: str,
        timeout_s: float = 30.0,
        patience_s: float = PATIENCE_S,
        on_wait: Callable[[Unavailable], None] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._on_wait = on_wait
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=timeout_s, mounts=_DIRECT)
        # Presigned URLs are for another host: the token must not go there.
        self._files = httpx.Client(timeout=httpx.Timeout(timeout_s, read=120, write=120), mounts=_DIRECT)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, spec: Spec, idempotency_key: str | None = None) -> Job:
        """Submit a job. A repeat with the same key gives the same job; without a key each call makes one job."""
        key = idempotency_key or secrets.token_urlsafe(16)  # our own tries are repeats, too
        return Job.model_validate(self._change("/jobs", **_spec_body(spec, {"Idempotency-Key": key})))

    def validate(self, spec: Spec) -> ValidSpec:
        """Check a spec without submitting it; an ApiError lists every field at fault in `problems`."""
        return ValidSpec.model_validate(self._send("POST", "/jobs:validate", **_spec_body(spec)))

    def list(self, status: Status | None = None, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Jobs, newest first."""
        given = {"status": status, "limit": limit, "cursor": cursor}
        params = {name: str(value) for name, value in given.items() if value is not None}
        return JobPage.model_validate(self._send("GET", "/jobs", params=params))

    def get(self, job_id: str) -> Job:
        """One job, with where it stands."""
        return Job.model_validate(self._send("GET", _path(job_id)))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; a running one ends as soon as it can."""
        return Job.model_validate(self._change(_path(job_id, "/cancel")))

    def retry(self, job_id: str, steps: int | None = None) -> Job:
        """Submit a failed or cancelled job anew; it goes on from the old one's newest checkpoint.

        Args:
            steps: in all, those before the checkpoint included; None for as many as before.
        """
        changes = {} if steps is None else {"json": {"steps": steps}}
        return Job.model_validate(self._change(_path(job_id, "/retry"), **changes))

    def wait(self, job_id: str) -> Job:
        """Return when the job has ended."""
        for _ in self.events(job_id):
            pass
        return self.get(job_id)

    def webhook_secret(self) -> str:
        """`whsec_...`, with which your receiver checks that a message is ours."""
        return WebhookSecret.model_validate(self._send("GET", "/webhooks/secret")).secret

    # -- events -------------------------------------------------------------------------------------------------------

    def events(
        self, job_id: str, after: str = "0-0", follow: bool = True, patience_s: float = PATIENCE_S
    ) -> Iterator[JobEvent]:
        """Events of a job behind the event `after`, each once.

        Args:
            follow: go on until the job has ended, over lost connections and restarts of the API.
            patience_s: how long it may be out of reach before that is an error.
        """
        if not follow:
            yield from self._present_events(job_id, after)
            return
        lost_at: float | None = None
        while True:
            try:
                for event in self._stream(job_id, after):
                    yield event
                    after, lost_at = event.id, None
                    if event.final_status:
                        return
                if self.get(job_id).status.final and not any(self._present_events(job_id, after)):
                    return  # `after` was the last event already
            except Unavailable:
                lost_at = lost_at or monotonic()
                if monotonic() - lost_at > patience_s:
                    raise
            sleep(1)

    def _present_events(self, job_id: str, after: str) -> Iterator[JobEvent]:
        while True:
            headers = {"Accept": "application/json", "Last-Event-ID": after}
            events = _EVENTS.validate_python(self._send("GET", _path(job_id, "/events"), headers=headers))
            if not events:
                return
            yield from events
            after = events[-1].id

    def _stream(self, job_id: str, after: str) -> Iterator[JobEvent]:
        """Events of one connection, for as long as it lasts."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": after}
        timeout = httpx.Timeout(30, read=QUIET_S)
        try:
            with self._http.stream("GET", _path(job_id, "/events"), headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise_for_problem(response)
                for data in read_data(response.iter_lines()):
                    yield JobEvent.model_validate_json(data)
        except httpx.TransportError as error:
            raise no_answer(self.url, error) from error

    # -- files --------------------------------------------------------------------------------------------------------

    def upload_dataset(
        self,
        dataset: Path | LocalDataset,
        name: str | None = None,
        on_file: Callable[[str], None] | None = None,
    ) -> UploadedDataset:
        """Upload the pictures and captions of a folder, or an archive of them.

        Args:
            name: shows in the bucket; None for the folder's or the archive's.
            on_file: called with the path of each file that has arrived.

        Raises:
            NotADataset: there is no picture in it.
        """
        contents = read_dataset(dataset) if isinstance(dataset, Path) else dataset
        files = [{"path": name, "size_bytes": path.stat().st_size} for name, path in contents.files.items()]
        answer = self._send("POST", "/datasets", json={"name": name or contents.name, "files": files})
        upload = DatasetUpload.model_validate(answer)

        def put(file: Upload) -> None:
            put_file(self._files, contents.files[file.path], file.url)

        all_at_once(put, upload.files, lambda file: on_file(file.path) if on_file else None)
        return UploadedDataset(upload.uri, contents)

    def artifacts(self, job_id: str) -> Artifacts:
        """The files that a job left, with URLs; an ApiError with code no_artifacts_yet if it left none."""
        return Artifacts.model_validate(self._send("GET", _path(job_id, "/artifacts")))

    def pull(self, job_id: str, folder: Path, on_file: Callable[[Artifact], None] | None = None) -> Pulled:
        """Download what a job left, each file checked by SHA-256; what lies there whole is not fetched again.

        Args:
            on_file: called with each file that is there.
        """
        files = self.artifacts(job_id).files
        fetched: set[str] = set()

        def fetch(artifact: Artifact) -> None:
            if fetch_file(self._files, artifact, folder):
                fetched.add(artifact.path)

        all_at_once(fetch, files, on_file)
        return Pulled(
            folder,
            tuple(file for file in files if file.path in fetched),
            tuple(file for file in files if file.path not in fetched),
        )

    # -- one request --------------------------------------------------------------------------------------------------

    def _change(self, path: str, **request: Any) -> Any:
        """The answer to a POST that may be repeated, asked for again while the API answers that it cannot just now."""
        gives_up_s, wait_s = monotonic() + self._patience_s, 0.5
        while True:
            try:
                return self._send("POST", path, **request)
            except Unavailable as error:
                if error.status is None or monotonic() + wait_s > gives_up_s:
                    raise
                if self._on_wait is not None and wait_s == 0.5:
                    self._on_wait(error)
            sleep(wait_s)
            wait_s = min(5.0, 2 * wait_s)

    def _send(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of the answer. A connection that breaks is tried again: every request here may be repeated."""
        for count in range(1, TRIES + 1):
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if count == TRIES:
                    raise no_answer(self.url, error) from error
                sleep(0.2 * 2**count)
            else:
                raise_for_problem(response)
                return response.json()
        raise AssertionError("unreachable")


def _spec_body(spec: Spec, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What httpx should send for a spec."""
    if isinstance(spec, str | bytes):
        return {"content": spec, "headers": {"Content-Type": "application/yaml", **(headers or {})}}
    values = spec.model_dump(mode="json") if isinstance(spec, JobSpec) else dict(spec)
    return {"content": json.dumps(values), "headers": {"Content-Type": "application/json", **(headers or {})}}


def _path(job_id: str, below: str = "") -> str:
    return f"/jobs/{quote(job_id, safe='')}{below}"

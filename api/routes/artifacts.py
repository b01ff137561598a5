"""/v1/jobs/{id}/artifacts: the files of the committed manifest, each with a presigned URL."""

from datetime import timedelta

from fastapi import APIRouter

from api.deps import ActorDep, ServicesDep
from api.errors import NoArtifactsYet
from api.openapi import problems
from api.schemas import Artifact, Artifacts
from jobs import audit
from jobs.errors import ObjectNotFound
from jobs.manifest import Manifest, read_committed
from jobs.record import JobRecord, now
from jobs.status import Status
from jobs.uri import S3Uri

router = APIRouter(tags=["jobs"])

EXPIRES_S = 3600


@router.get("/jobs/{job_id}/artifacts", responses=problems(401, 404, 409, 422, 503))
def list_artifacts(actor: ActorDep, services: ServicesDep, job_id: str) -> Artifacts:
    """What the job left: weights, pictures, curves and logs. All of it or nothing: there is no half output."""
    record = services.find(job_id, actor.owner)
    if record.status is not Status.SUCCEEDED:
        raise NoArtifactsYet(_why_none(record))
    folder = S3Uri.parse(record.output_uri)
    try:
        manifest = Manifest.model_validate_json(read_committed(services.storage, record))
    except ObjectNotFound:
        raise NoArtifactsYet(_why_none(record)) from None
    audit.write(services.store.redis, actor, audit.Action.ARTIFACTS, job_id, files=len(manifest.files))
    return Artifacts(
        output_uri=record.output_uri,
        committed_at=manifest.committed_at,
        expires_at=now() + timedelta(seconds=EXPIRES_S),
        files=tuple(
            Artifact(
                path=file.path,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                url=services.storage.presign_get(folder / file.stored_as, EXPIRES_S),
            )
            for file in manifest.files
        ),
    )


def _why_none(record: JobRecord) -> str:
    """One sentence on why there is no output, and what to do."""
    if record.status is Status.FAILED and record.failure:
        return f"The job failed and left no output: {record.failure.message}"
    if record.status is Status.CANCELLED:
        return "The job was cancelled and left no output."
    if record.status is Status.SUCCEEDED:
        return f"The job succeeded, but its manifest is gone from {record.output_uri}."
    return f"The job is {record.status}: its output appears when it has succeeded. Follow it with `loraq logs -f`."

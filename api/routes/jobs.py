"""/v1/jobs: submit, validate, list, look at, cancel and retry."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from api.bodies import spec_body, submitted_spec
from api.deps import ActorDep, OwnerDep, ServicesDep
from api.openapi import SPEC_BODY, problems
from api.schemas import Job, JobPage, JobSummary, RetryChanges, ValidSpec
from jobs import archive_index, webhooks
from jobs.audit import Action, noting
from jobs.errors import JobNotFound
from jobs.needs import trainable_weights
from jobs.record import JobRecord, now
from jobs.status import Status
from jobs.waiting import why_it_waits

router = APIRouter(tags=["jobs"])

SpecBody = Annotated[tuple[str, bytes], Depends(spec_body)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="Makes a repeat harmless: the same key and spec give the same job, for seven days.",
    ),
]


@router.post(
    "/jobs",
    status_code=201,
    responses={
        200: {"model": Job, "description": "This key made this job before."},
        **problems(401, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra=SPEC_BODY,
)
def submit(
    actor: ActorDep,
    services: ServicesDep,
    body: SpecBody,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Submit a job. Once this answers, the job is not lost."""
    spec = submitted_spec(*body, services.settings, actor.owner, services.webhooks_to)
    new = JobRecord.create(actor.owner, spec)
    with noting(actor, Action.SUBMIT) as note:
        record = services.store.submit(new, idempotency_key, note)
    if record.id != new.id:
        response.status_code = 200
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    return _view(services, record)


@router.post("/jobs:validate", responses=problems(401, 413, 415, 422, 503), openapi_extra=SPEC_BODY)
def validate(owner: OwnerDep, services: ServicesDep, body: SpecBody) -> ValidSpec:
    """Check a spec without submitting it. Base model and dataset are not looked at."""
    spec = submitted_spec(*body, services.settings, owner, services.webhooks_to)
    return ValidSpec(spec=spec, trainable_parameters=trainable_weights(spec))


@router.get("/jobs", responses=problems(401, 422, 503))
def list_jobs(
    owner: OwnerDep,
    services: ServicesDep,
    status: Annotated[Status | None, Query(description="Only jobs that stand here.")] = None,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9a-f-]{1,40}$", description="next_cursor of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs a page.")] = 50,
) -> JobPage:
    """Your jobs, newest first."""
    page = services.store.page(owner, status, cursor, limit)
    # Read second: one that is archived in between is in one of both, or in both.
    archived = archive_index.newest(services.store.redis, owner, status, cursor, limit + 1)
    found = {each.id: JobSummary.of_archived(each) for each in archived}
    found |= {record.id: JobSummary.of(record) for record in page.jobs}
    newest = sorted(found.values(), key=lambda job: job.id, reverse=True)[:limit]
    more = page.next_cursor is not None or len(found) > limit
    return JobPage(jobs=tuple(newest), next_cursor=newest[-1].id if more and newest else None)


@router.get("/jobs/{job_id}", responses=problems(401, 404, 422, 503))
def show(owner: OwnerDep, services: ServicesDep, job_id: str) -> Job:
    """One job, with where it stands."""
    return _view(services, services.find(job_id, owner))


@router.post(
    "/jobs/{job_id}/cancel",
    responses={202: {"model": Job, "description": "It runs, and was asked to stop."}, **problems(401, 404, 422, 503)},
)
def cancel(actor: ActorDep, services: ServicesDep, job_id: str, response: Response) -> Job:
    """Cancel a job: a waiting one at once, a running one as soon as it can. One that has ended stays as it is."""
    with noting(actor, Action.CANCEL) as note:
        try:
            record = services.store.request_cancel(job_id, actor.owner, note)
        except JobNotFound:
            record = services.archive.get(job_id, actor.owner)
    if record.status.running:
        response.status_code = 202
    return _view(services, record)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=201,
    responses={
        200: {"model": Job, "description": "It was asked for before: this is the job that it made."},
        **problems(401, 404, 409, 422, 429, 503),
    },
)
def retry(
    actor: ActorDep, services: ServicesDep, job_id: str, response: Response, changes: RetryChanges | None = None
) -> Job:
    """Submit a failed or cancelled job anew, as a new job: it goes on from the old one's newest checkpoint."""
    asked_at = now()
    steps = changes and changes.steps
    with noting(actor, Action.RETRY) as note:
        record = services.store.retry(services.find(job_id, actor.owner), note, steps)
    if record.created_at < asked_at:
        response.status_code = 200
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    return _view(services, record)


def _view(services: ServicesDep, record: JobRecord) -> Job:
    store = services.store
    told = webhooks.delivery(store.redis, record.id) if record.spec.webhook and record.status.final else None
    return Job.of(
        record, store.progress(record.id) if record.attempts else None, told, why_it_waits(store.redis, record)
    )

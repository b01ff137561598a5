"""What the API answers and what it takes, beside the spec: models that server and client share."""

from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from jobs.archive_index import Archived
from jobs.events import Event, Kind
from jobs.record import Attempt, Failure, JobRecord
from jobs.spec import JobSpec
from jobs.spec_section import Name
from jobs.status import Status
from jobs.store import Progress
from jobs.webhooks import Delivery

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CAPTION_ENDINGS = (".txt", ".caption")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
METADATA_NAME = "metadata.jsonl"  # captions by file, as Hugging Face's imagefolder has them
MAX_DATASET_FILES = 10_000
MAX_FILE_BYTES = 1 << 30
MAX_ARCHIVE_BYTES = 5 << 30
"""What one PUT may carry: https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html"""


class View(BaseModel):
    """Something that the API shows."""

    model_config = ConfigDict(frozen=True)


class Job(View):
    """A job as its owner sees it."""

    id: str
    owner: str
    status: Status
    created_at: datetime
    updated_at: datetime
    not_before: datetime | None = Field(
        default=None, description="When a job that waits after a failed attempt is tried again; null: when it can be."
    )
    cancel_requested_at: datetime | None = None
    retry_of: tuple[str, ...] = Field(default=(), description="The jobs that this one tries again, newest first.")
    attempts: tuple[Attempt, ...] = ()
    needs: str = Field(description="Class of GPUs that it needs: 24gb, or 24gb-x2 for two of them; docs/operations.md.")
    waits_because: str | None = Field(
        default=None, description="Why no worker that lives can take it; null while it can, or does not wait."
    )
    progress: Progress | None = Field(default=None, description="Where the newest attempt stands; null before one.")
    failure: Failure | None = Field(default=None, description="Why the job failed; null unless it did.")
    webhook: Delivery | None = Field(
        default=None, description="How far the message to spec.webhook has come; null before the job has ended."
    )
    output_uri: str = Field(description="Folder in which everything lies that the job leaves.")
    spec: JobSpec = Field(description="As submitted, with every default filled in.")

    @classmethod
    def of(
        cls,
        record: JobRecord,
        progress: Progress | None,
        webhook: Delivery | None = None,
        waits_because: str | None = None,
    ) -> Self:
        """The job of a record. Progress that an earlier attempt reported is left out."""
        number = record.attempt.number if record.attempt else 0
        beside = ("progress", "webhook", "waits_because")
        return cls(
            **{name: getattr(record, name) for name in cls.model_fields if name not in beside},
            waits_because=waits_because,
            progress=progress if progress and progress.attempt == number else None,
            webhook=webhook,
        )


class RetryChanges(View):
    """What a job that is tried again does otherwise than the one before. Nothing but the number of steps may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Steps in all, those before the checkpoint included; null: as many as before.",
    )

    @model_validator(mode="before")
    @classmethod
    def _only_steps(cls, data: JsonValue) -> JsonValue:
        if isinstance(data, dict) and (others := sorted(data.keys() - cls.model_fields.keys())):
            raise ValueError(
                f"{', '.join(others)} cannot be changed by a retry: it goes on from a checkpoint, and only the number "
                "of steps may be another there. Submit a new job, or begin it with this one's adapter (lora.init_from)"
            )
        return data


class JobSummary(View):
    """A job in a list."""

    id: str
    name: str
    status: Status
    created_at: datetime
    updated_at: datetime
    attempts: int = Field(description="How many attempts there were.")
    failure: Failure | None = None
    archived: bool = Field(default=False, description="It ended long ago, and its record lies in the bucket only.")

    @classmethod
    def of_archived(cls, job: Archived) -> Self:
        """The line of an archived job."""
        return cls(**job.model_dump(exclude={"output_uri", "sha256"}), archived=True)

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        """The line of a record."""
        return cls(
            id=record.id,
            name=record.spec.name,
            status=record.status,
            created_at=record.created_at,
            updated_at=record.updated_at,
            attempts=len(record.attempts),
            failure=record.failure,
        )


class JobPage(View):
    """Jobs, newest first."""

    jobs: tuple[JobSummary, ...]
    next_cursor: str | None = Field(description="Ask for the next page with it; null: this is the last.")


class ValidSpec(View):
    """A spec that could be submitted."""

    valid: Literal[True] = True
    spec: JobSpec = Field(description="As it would be carried out: preset and defaults filled in.")
    trainable_parameters: int = Field(
        description="On a full-size SDXL: of the adapter, with lora.patterns or lora.overrides so many at most; with "
        "fine_tuning of the whole U-Net."
    )


class JobEvent(View):
    """One thing that happened to a job."""

    id: str = Field(description="Send it as Last-Event-ID to get what came after.")
    kind: Kind
    at: datetime
    attempt: int = Field(description="0 before the first attempt.")
    data: dict[str, JsonValue]

    @classmethod
    def of(cls, event: Event) -> Self:
        """The view of a stored event."""
        return cls(id=event.id, kind=event.kind, at=event.at, attempt=event.attempt, data=event.data)

    @property
    def final_status(self) -> Status | None:
        """The status in which the job ended with this event, None if it did not."""
        if self.kind != "status":
            return None
        status = Status(str(self.data["to"]))
        return status if status.final else None


class Artifact(View):
    """One file that a job left."""

    path: str = Field(description="Below the job's output folder, with /.")
    size_bytes: int
    sha256: str
    url: str = Field(description="Presigned: fetch it with no credentials until expires_at.")


class Artifacts(View):
    """The files of a job's committed manifest."""

    output_uri: str
    committed_at: datetime
    expires_at: datetime = Field(description="Until then the URLs hold; ask again for new ones.")
    files: tuple[Artifact, ...]


def _inside_a_dataset(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("write it relative to the dataset's folder, without . or .. and without / at either end")
    endings = PICTURE_ENDINGS + CAPTION_ENDINGS
    if PurePosixPath(path).suffix.lower() not in endings and parts[-1] != METADATA_NAME and not _is_archive(path):
        raise ValueError(
            f"a dataset holds pictures and captions only ({', '.join((*endings, METADATA_NAME))}), "
            f"or is one archive of them ({', '.join(ARCHIVE_ENDINGS)})"
        )
    return path


def _is_archive(path: str) -> bool:
    return path.lower().endswith(ARCHIVE_ENDINGS)


DatasetPath = Annotated[
    str,
    StringConstraints(min_length=5, max_length=500, pattern=r"^[^\x00-\x1f\x7f\\]+$"),
    AfterValidator(_inside_a_dataset),
]


class DatasetFile(View):
    """One file to upload."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: DatasetPath = Field(description="Relative to the dataset's folder, with /: cats/01.jpg.")
    size_bytes: int = Field(
        ge=0, le=MAX_ARCHIVE_BYTES, description="Exactly: no other size is taken. At most 1 GiB, an archive 5 GiB."
    )

    @model_validator(mode="after")
    def _within_its_limit(self) -> Self:
        if self.size_bytes > MAX_FILE_BYTES and not _is_archive(self.path):
            raise ValueError(f"{self.path} is larger than 1 GiB")
        return self


class NewDataset(View):
    """The files of a dataset that is to be uploaded, or the one archive that holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Short name: a-z, 0-9 and -, at most 63 characters.")
    files: tuple[DatasetFile, ...] = Field(min_length=1, max_length=MAX_DATASET_FILES)

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        seen: set[str] = set()
        for file in self.files:
            if file.path in seen:
                raise ValueError(f"files names {file.path} twice")
            seen.add(file.path)
        return self

    @property
    def is_archive(self) -> bool:
        """Whether it is one archive."""
        return _is_archive(self.files[0].path)

    @model_validator(mode="after")
    def _archives_come_alone(self) -> Self:
        archive = next((file.path for file in self.files if _is_archive(file.path)), None)
        if archive is not None and len(self.files) > 1:
            raise ValueError(f"files names {archive} and {len(self.files) - 1} more: an archive is a dataset by itself")
        return self


class Upload(View):
    """Where one file goes."""

    path: str
    url: str = Field(description="Presigned: PUT the file's bytes to it, with no credentials, until expires_at.")


class DatasetUpload(View):
    """Where a dataset goes."""

    uri: str = Field(description="Put it into the spec as dataset.uri once all files are uploaded.")
    expires_at: datetime
    files: tuple[Upload, ...]


class WebhookSecret(View):
    """What a receiver checks messages with."""

    secret: str = Field(description="whsec_...: all your messages are signed with it, as Standard Webhooks says.")


class Health(View):
    """Whether the API can do its work."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str] = Field(default_factory=dict, description='By name "ok", or what is wrong.')


class FieldProblem(View):
    """One field at fault."""

    field: str = Field(description='Dotted path into what was sent; "" for the whole of it.')
    message: str


class ProblemDetails(View):
    """An error, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What went wrong and what to do, for a person.")
    code: str = Field(description="Stable: match on this one.")
    instance: str
    problems: tuple[FieldProblem, ...] | None = Field(default=None, description="Every field at fault, if any is.")

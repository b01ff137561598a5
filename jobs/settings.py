"""Everything that is set from outside: environment variables `LORAQ_*`, read once in a program's main()."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.gpu_class import GpuClass

# A comma-separated list in the environment; NoDecode keeps pydantic-settings from asking for JSON.
Names = Annotated[tuple[str, ...], NoDecode]
_FOLDER = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(\{owner\}|[^{}])*)?")
Folders = Annotated[tuple[Path, ...], NoDecode]


class Settings(BaseSettings):
    """What API, worker and reaper need to know of the machine they run on. docs/settings.md lists them."""

    model_config = SettingsConfigDict(env_prefix="LORAQ_", frozen=True, extra="ignore")

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey, password included."
    )
    queue: str = Field(
        default="loraq",
        pattern=r"^[a-z0-9-]{1,40}$",
        description="What the RQ queues are called, one for each class of GPUs: loraq-24gb.",
    )

    gpu_classes: Names = Field(
        default=(),
        description="Classes of GPUs that this installation has or can start, as `24gb,80gb,80gb-x4`: a job waits in "
        "the queue of the smallest that fits, also while no such worker lives. Unset: those of living workers.",
    )

    s3_endpoint_url: str | None = Field(
        default=None, description="Object store, as API and workers reach it. Unset: AWS."
    )
    s3_public_endpoint_url: str | None = Field(
        default=None,
        description="The same store as users reach it: presigned URLs are signed for this host. Unset: the above.",
    )
    s3_region: str = Field(default="us-east-1", description="Region that signatures name.")
    s3_access_key_id: SecretStr | None = Field(default=None, description="Unset: boto3's own chain (instance role, …).")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="Belongs to s3_access_key_id.")
    s3_stall_s: float = Field(
        default=20.0,
        gt=0,
        description="An answer of the object store that brings nothing, or less than 1 KiB a second, for so long is "
        "dropped and asked for again.",
    )
    readable: Names = Field(
        default=("s3://datasets/{owner}/", "s3://models/", "s3://outputs/{owner}/"),
        description="Folders whose objects a spec may name as base model or dataset; {owner} is whose spec it is.",
    )
    writable: Names = Field(
        default=("s3://outputs/{owner}/",), description="Folders below which a spec may put its output."
    )
    max_dataset_gib: float = Field(
        default=50.0, gt=0, description="The largest dataset that a worker fetches, also once it is unpacked."
    )
    datasets_bucket: str = Field(default="datasets", description="Bucket that `loraq submit --dataset` uploads to.")
    allowed_folders: Folders = Field(
        default=(), description="Folders of the worker that file:// may name; empty: none."
    )

    webhook_allow: Names = Field(
        default=(),
        description="Hosts, addresses and networks that a webhook may reach although they are not public: "
        "hooks.internal,10.0.0.0/8.",
    )

    data_dir: Path = Field(
        default=Path("~/.cache/loraq"), description="Worker: downloads, caches and scratch lie below it."
    )
    cache_max_gib: float = Field(
        default=50.0, gt=0, description="Worker: cached base models and datasets, before eviction."
    )
    encodings_uri: str = Field(
        default="s3://outputs/{owner}/.encodings/",
        description="Worker: folder in a bucket, one for each {owner}, for latents and text embeddings, so that "
        "another worker need not make them again. Empty: they are kept on the worker only.",
    )
    encodings_max_gib: float = Field(
        default=20.0, gt=0, description="Worker: cached latents and text embeddings, before eviction."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="Worker: where the trainer runs; auto: on its GPUs, and without any it takes no job. cpu: it takes "
        "every job of up to 4 gpus, and a full-size one takes weeks.",
    )
    worker_class: str | None = Field(
        default=None,
        description="Worker: class of GPUs to take jobs for, if not that of its cards: `12gb` on a card of 24 leaves "
        "it small jobs. A larger one than it has needs `LORAQ_DEVICE=cpu`, to try things out.",
    )
    gpus: Literal["all"] | PositiveInt = Field(
        default="all",
        description="Worker: how many of the machine's GPUs it takes, by locks in LORAQ_DATA_DIR that workers of one "
        "machine share; all: every one that it sees, without a lock.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Worker: machines whose GPUs it trains on, this one included, all with as many: on each of the "
        "others runs `python -m worker.joining`. All of them share LORAQ_DATA_DIR.",
    )
    rendezvous: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]+:\d{1,5}$",
        description="Worker: host:port where the first of several machines listens to the others, as all of them reach "
        "it. On a private network: it asks for no password.",
    )
    cpu_threads: int = Field(
        default=1,
        ge=1,
        description="Worker: CPU threads of the trainer. Small models are fastest with one; a GPU needs no more.",
    )

    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="API and worker: port on which each shows its figures to Prometheus, apart from the API's own; "
        "docs/metrics.md. Unset: none. The API and each worker of one machine need ports of their own.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of that port. The figures hold no secret and name no job and no owner, and have no token: "
        "0.0.0.0 only inside a network of your own.",
    )
    alive_file: Path | None = Field(
        default=None,
        description="Worker and reaper: a file that each touches as long as it is well; `python -m jobs.alive FILE` "
        "looks at it. Unset: none.",
    )
    grace_s: float = Field(
        default=100.0,
        gt=0,
        description="From SIGTERM to the worker until its job is back in the queue, checkpoint uploaded. Whatever "
        "stops the worker (docker stop, Kubernetes) must wait longer than this.",
    )
    heartbeat_s: float = Field(
        default=5.0, gt=0, description="How often a running attempt reports and looks for a cancel."
    )
    lease_s: float = Field(
        default=45.0, gt=0, description="An attempt that has not reported for so long is lost: its job is tried again."
    )
    hang_s: float = Field(
        default=900.0,
        gt=0,
        description="A trainer that says nothing for so long hangs: it is ended. Longer than the longest step.",
    )
    reap_every_s: float = Field(
        default=5.0, gt=0, description="How often the reaper looks for lost attempts and for jobs whose wait is over."
    )
    max_failures: int = Field(
        default=3, ge=1, description="A job that failed so often, each time for a reason that may pass, stops there."
    )
    max_preemptions: int = Field(
        default=100, ge=0, description="How often a job may go back to the queue because its worker was stopped."
    )
    retry_wait_s: float = Field(
        default=30.0, ge=0, description="Wait before a failed job is tried again; doubles each time, with jitter."
    )
    retry_wait_max_s: float = Field(default=900.0, ge=0, description="The longest such wait.")
    archive_after_days: float | None = Field(
        default=90.0,
        ge=8,
        description="Jobs that ended so long ago leave Redis for the bucket; they are listed and shown as before. At "
        "least 8: an Idempotency-Key may name a job for seven days.",
    )
    keep_checkpoints_days: float = Field(
        default=30.0,
        gt=0,
        description="How long the checkpoints of a job that failed are kept for loraq retry; a retry begins it anew.",
    )
    max_queued_per_owner: int = Field(
        default=1000, ge=1, description="Jobs of one owner that may wait; more are refused with 429."
    )
    max_running_per_owner: int | None = Field(
        default=None, ge=1, description="Jobs of one owner that run at once; the others wait. Unset: no limit."
    )

    @property
    def buckets(self) -> tuple[str, ...]:
        """Every bucket that a spec may name."""
        folders = (*self.readable, *self.writable)
        return tuple(dict.fromkeys(folder.removeprefix("s3://").partition("/")[0] for folder in folders))

    @field_validator("readable", "writable", "allowed_folders", "webhook_allow", "gpu_classes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("gpu_classes")
    @classmethod
    def _are_classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(GpuClass.parse(name).name for name in names)

    @field_validator("worker_class")
    @classmethod
    def _is_class(cls, name: str | None) -> str | None:
        return GpuClass.parse(name).name if name else None

    @field_validator("readable", "writable")
    @classmethod
    def _are_folders(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not _FOLDER.fullmatch(folder):
                raise ValueError(
                    f"{folder} is no folder in a bucket: write s3://bucket/folder/ or s3://bucket/{{owner}}/."
                )
        return folders

    @field_validator("encodings_uri")
    @classmethod
    def _is_each_owner_s_own(cls, folder: str) -> str:
        if folder and (not _FOLDER.fullmatch(folder) or "/{owner}" not in folder):
            raise ValueError(
                f"{folder} is no folder in a bucket for each owner: write s3://bucket/{{owner}}/encodings/, or nothing."
            )
        return folder

    @model_validator(mode="after")
    def _lease_outlasts_heartbeats(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"LORAQ_LEASE_S is {self.lease_s:g}, but an attempt reports every {self.heartbeat_s:g} s "
                f"(LORAQ_HEARTBEAT_S): make it at least {3 * self.heartbeat_s:g}, so that one late report ends nothing."
            )
        return self

    @model_validator(mode="after")
    def _machines_meet_somewhere(self) -> Self:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                f"LORAQ_NODES is {self.nodes}, and LORAQ_RENDEZVOUS is not set: name the host and a free port of the "
                "first machine, as gpu-1.internal:29400."
            )
        return self

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("LORAQ_S3_ACCESS_KEY_ID and LORAQ_S3_SECRET_ACCESS_KEY belong together: set both or none.")
        return self

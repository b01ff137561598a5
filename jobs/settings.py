"""Everything that is set from outside: environment variables `LORAQ_*`, read once in a program's main()."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# A comma-separated list in the environment; NoDecode keeps pydantic-settings from asking for JSON.
Names = Annotated[tuple[str, ...], NoDecode]
Folders = Annotated[tuple[Path, ...], NoDecode]


class Settings(BaseSettings):
    """What API, worker and reaper need to know of the machine they run on. docs/settings.md lists them."""

    model_config = SettingsConfigDict(env_prefix="LORAQ_", frozen=True, extra="ignore")

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey, password included."
    )
    queue: str = Field(
        default="loraq", pattern=r"^[a-z0-9-]{1,40}$", description="The one RQ queue that workers listen on."
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
    buckets: Names = Field(default=("datasets", "models", "outputs"), description="Buckets that a spec may name.")
    datasets_bucket: str = Field(default="datasets", description="Bucket that `loraq submit --dataset` uploads to.")
    allowed_folders: Folders = Field(
        default=(), description="Folders of the worker that file:// may name; empty: none."
    )

    data_dir: Path = Field(
        default=Path("~/.cache/loraq"), description="Worker: downloads, caches and scratch lie below it."
    )
    cache_max_gib: float = Field(
        default=50.0, gt=0, description="Worker: cached base models and datasets, before eviction."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(default="auto", description="Worker: where the trainer runs.")
    cpu_threads: int = Field(
        default=1,
        ge=1,
        description="Worker: CPU threads of the trainer. Small models are fastest with one; a GPU needs no more.",
    )

    grace_s: float = Field(
        default=30.0, gt=0, description="How long a trainer may take to stop when asked, before it is killed."
    )
    heartbeat_s: float = Field(
        default=5.0, gt=0, description="How often a running attempt reports and looks for a cancel."
    )

    @field_validator("buckets", "allowed_folders", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> Self:
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("LORAQ_S3_ACCESS_KEY_ID and LORAQ_S3_SECRET_ACCESS_KEY belong together: set both or none.")
        return self

"""From a job to what its files' headers say of it, in words that the trainer takes as they are."""

import hashlib
from dataclasses import replace
from importlib.metadata import version

from jobs.published import published_spec
from jobs.record import JobRecord
from jobs.shards import shards
from jobs.spec import JobSpec
from worker.archives import is_archive, without_ending
from worker.loop.config import HeaderConfig

_SESSION_BYTES = 4  # sd-scripts draws a number of so many


def header_config(spec: JobSpec) -> HeaderConfig:
    """What a spec alone says."""
    told = spec.output.metadata
    entries = {
        "modelspec.author": told.author,
        "modelspec.description": told.description,
        "modelspec.tags": ",".join(told.tags),
        "modelspec.license": told.license,
        "modelspec.usage_hint": told.usage_hint,
        "ss_training_comment": told.comment,
        "loraq_version": version("loraq"),
        "loraq_spec": published_spec(spec),
    }
    return HeaderConfig(
        name=spec.name,
        title=told.title or spec.name,
        base_model=_name_of(spec.base_model),
        dataset=_dataset_name(spec.dataset.uri),
        entries=tuple((key, value) for key, value in entries.items() if value),
    )


def of_job(header: HeaderConfig, record: JobRecord) -> HeaderConfig:
    """The same with what the record adds: when the job's first attempt began, and a number that its files share."""
    digest = hashlib.sha256(record.id.encode()).digest()
    session = int.from_bytes(digest[:_SESSION_BYTES])  # the id itself is not everybody's business
    return replace(
        header,
        started_at_s=record.attempts[0].started_at.timestamp(),
        entries=(*header.entries, ("ss_session_id", str(session))),
    )


def _name_of(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _dataset_name(uri: str) -> str:
    """The folder's name, or the archive's without its ending."""
    name = _name_of(shards(uri)[0])
    return without_ending(name) if is_archive(name) else name

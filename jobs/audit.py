"""Who did what when: one capped Redis stream for all owners, and one line in the log for each entry.

Where what was done is a transaction, the entry is written in it. No entry holds a token or a secret: a token goes by
its fingerprint, twelve digits of its SHA-256.

Keys:
    loraq:audit   the stream; the ids of its entries say when
"""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

import json
import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from redis import Redis
from redis.client import Pipeline

from jobs.record import JobRecord

log = logging.getLogger(__name__)

STREAM = "loraq:audit"

MAX_ENTRIES = 100_000
"""About: the oldest go first. Some 20 MB in Redis; the log keeps the lines for as long as you keep logs."""

PAGE = 1000

Detail = Mapping[str, JsonValue]


class Action(StrEnum):
    """What can be done. Looking at jobs is no entry; what hands out access is."""

    SUBMIT = "submit"
    CANCEL = "cancel"
    RETRY = "retry"
    RECOVER = "recover"  # a record that Redis had lost came back from the bucket
    DATASET = "dataset"  # URLs to upload to were handed out
    ARTIFACTS = "artifacts"  # URLs to download by were handed out
    WEBHOOK_SECRET = "webhook_secret"
    TOKEN_CREATE = "token_create"
    TOKEN_REVOKE = "token_revoke"


@dataclass(frozen=True)
class Actor:
    """Who does something."""

    owner: str  # "operator" for one who has Redis itself
    token: str = ""  # fingerprint of the token that came with the request


class Entry(BaseModel):
    """One thing that was done."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    owner: str = Field(description="Who did it; operator: with Redis itself, on the command line.")
    token: str = Field(description="Fingerprint of the token, as `loraq token list` shows it.")
    action: Action
    subject: str = Field(description="What it was done to: a job's id, a dataset's URI, a token's fingerprint.")
    detail: dict[str, JsonValue]


@dataclass
class Note:
    """An entry to be, that joins the transaction of what it is about: hand it to the store as `also`."""

    actor: Actor
    action: Action
    _written: tuple[str, Detail] | None = None

    def __call__(self, pipeline: "Pipeline", record: JobRecord) -> None:
        """Write the entry, about this job."""
        detail = {"retry_of": record.retry_of[0]} if self.action is Action.RETRY else {}
        self._written = record.id, detail
        _append(pipeline, self.actor, self.action, record.id, detail)

    def say(self) -> None:
        """Log it, if there was anything to do."""
        if self._written is not None:
            _log(self.actor, self.action, *self._written)


@contextmanager
def noting(actor: Actor, action: Action) -> Generator[Note]:
    """A note for one transaction; logged when that is done."""
    note = Note(actor, action)
    yield note
    note.say()


def write(redis: "Redis", actor: Actor, action: Action, subject: str, **detail: JsonValue) -> None:
    """Write and log an entry about something that is no transaction."""
    _append(redis, actor, action, subject, detail)
    _log(actor, action, subject, detail)


def read(redis: "Redis", since: datetime | None = None) -> Iterator[Entry]:
    """Entries, newest first, as far back as they are kept or as `since`."""
    oldest = "-" if since is None else str(int(since.timestamp() * 1000))
    newest = "+"
    while True:
        entries = cast(
            list[tuple[bytes, dict[bytes, bytes]]], redis.xrevrange(STREAM, max=newest, min=oldest, count=PAGE)
        )
        for entry_id, fields in entries:
            yield _decode(entry_id, fields)
        if len(entries) < PAGE:
            return
        newest = f"({entries[-1][0].decode()}"


def _append(redis: "Redis | Pipeline", actor: Actor, action: Action, subject: str, detail: Detail) -> None:
    fields: dict[Any, Any] = {
        "owner": actor.owner,
        "token": actor.token,
        "action": action,
        "subject": subject,
        "detail": json.dumps(dict(detail)),
    }
    redis.xadd(STREAM, fields, maxlen=MAX_ENTRIES, approximate=True)


def _log(actor: Actor, action: Action, subject: str, detail: Detail) -> None:
    data = {"owner": actor.owner, "token": actor.token, "action": action, "subject": subject, **detail}
    log.info("%s: %s %s", actor.owner, action, subject, extra={"audit": data})


def _decode(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        at=datetime.fromtimestamp(int(entry_id.partition(b"-")[0]) / 1000, UTC),
        owner=fields[b"owner"].decode(),
        token=fields[b"token"].decode(),
        action=Action(fields[b"action"].decode()),
        subject=fields[b"subject"].decode(),
        detail=json.loads(fields[b"detail"]),
    )

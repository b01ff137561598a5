"""What the CLI prints, and its exit codes: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, TextIO

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from api.cli_connection import NotConnected
from api.client import PATIENCE_S
from api.client_errors import ApiError, Unavailable
from api.local_dataset import NotADataset
from api.schemas import Job, JobPage
from jobs.errors import InvalidSpec, Problem
from jobs.status import Status


class ExitCode(IntEnum):
    """What scripts can tell from how the CLI ends."""

    OK = 0
    JOB_FAILED = 1
    INVALID = 2
    REFUSED = 3
    UNAVAILABLE = 4
    CANCELLED = 5
    INTERRUPTED = 130


EXIT_CODES = {
    ExitCode.OK: "done; a job that was followed succeeded",
    ExitCode.JOB_FAILED: "a job that was followed failed; a part of `loraq up` ended by itself",
    ExitCode.INVALID: "wrong usage, or a spec that cannot be carried out",
    ExitCode.REFUSED: "not found, not yours, no token, or not possible as things stand",
    ExitCode.UNAVAILABLE: "the API, Redis or the object store cannot be reached",
    ExitCode.CANCELLED: "a job that was followed was cancelled",
    ExitCode.INTERRUPTED: "Ctrl-C; a job that was followed goes on",
}

STYLES = {Status.SUCCEEDED: "green", Status.FAILED: "red", Status.CANCELLED: "yellow", Status.TRAINING: "cyan"}

_REFUSALS = (401, 403, 404, 409, 429)


class Output:
    """Prints for a person, or with `as_json` one JSON value a line and nothing else on standard output."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    def json(self, value: BaseModel | Mapping[str, Any]) -> None:
        """One JSON value on a line."""
        print(value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value), flush=True)

    def say(self, sentence: str, style: str | None = None) -> None:
        """A sentence for the person who looks on."""
        self.err.print(printable(sentence), style=style)

    def waits(self, error: Unavailable) -> None:
        """That a request is asked again."""
        self.say(f"{error.detail} Asking again, for {PATIENCE_S:.0f} s at most ...", "yellow")

    def job(self, job: Job) -> None:
        """Everything about one job, but its spec."""
        if self.as_json:
            self.json(job)
            return
        rows = Table.grid(padding=(0, 2))
        rows.add_row("job", job.id)
        rows.add_row("name", job.spec.name)
        asked = ", cancel asked for" if job.cancel_requested_at and not job.status.final else ""
        rows.add_row("status", Text(f"{job.status}{asked}", STYLES.get(job.status, "")))
        if job.failure:
            rows.add_row("why", f"{job.failure.reason}: {printable(job.failure.message)}")
        if job.progress and job.status.running:
            rows.add_row("progress", _progress(job))
        rows.add_row("created", _local(job.created_at))
        for attempt in job.attempts:
            ended = f" to {_local(attempt.ended_at)}: {attempt.outcome}" if attempt.ended_at else ", running"
            resumed = f", from step {attempt.resumed_from_step}" if attempt.resumed_from_step else ""
            rows.add_row(
                f"attempt {attempt.number}", f"{_local(attempt.started_at)}{ended}, on {attempt.worker}{resumed}"
            )
            if attempt.failure:
                rows.add_row("", f"{attempt.failure.reason}: {printable(attempt.failure.message)}")
        rows.add_row("needs", f"a GPU of class {job.needs}")
        if job.waits_because:
            rows.add_row("waits", printable(job.waits_because))
        if job.not_before:
            rows.add_row("next try", _local(job.not_before))
        rows.add_row("output", job.output_uri)
        self.out.print(rows)

    def page(self, page: JobPage) -> None:
        """A list of jobs."""
        if self.as_json:
            self.json(page)
            return
        if not page.jobs:
            self.say("There are no such jobs.")
            return
        job_id = Column("job", no_wrap=True)  # what one copies from the table
        table = Table(job_id, "name", "status", "created", "why", box=None, padding=(0, 2, 0, 0))
        for job in page.jobs:
            status = Text(job.status, STYLES.get(job.status, ""))
            table.add_row(job.id, job.name, status, _local(job.created_at), job.failure.reason if job.failure else "")
        self.out.print(table)
        if page.next_cursor:
            self.say(f"There are more: --cursor {page.next_cursor}")

    def error(self, code: str, detail: str, problems: list[Problem] | None = None) -> None:
        """Why it did not work."""
        named = [{"field": each.field, "message": each.message} for each in problems or []]
        if self.as_json:
            self.json({"error": {"code": code, "detail": detail, "problems": named}})
        self.say(detail, "red")
        for each in named:
            self.say(f"  {each['field']}: {each['message']}" if each["field"] else f"  {each['message']}")

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn what goes wrong inside into words and an exit code."""
        try:
            yield
        except ApiError as error:
            self.error(error.code, error.detail, error.problems)
            raise typer.Exit(_exit_code(error)) from None
        except InvalidSpec as error:
            self.error(error.code, "The spec cannot be carried out.", error.problems)
            raise typer.Exit(ExitCode.INVALID) from None
        except (NotConnected, NotADataset) as error:
            self.error("usage", str(error))
            raise typer.Exit(ExitCode.INVALID) from None


def _console(stream: TextIO) -> Console:
    # Nothing in a pipe is 80 characters wide.
    width = None if stream.isatty() else 1000
    return Console(file=stream, highlight=False, markup=False, soft_wrap=True, width=width)


def printable(text: str) -> str:
    """`text` without the control characters by which what a server says could take over a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def _exit_code(error: ApiError) -> ExitCode:
    if isinstance(error, Unavailable) or error.status is None:
        return ExitCode.UNAVAILABLE
    return ExitCode.REFUSED if error.status in _REFUSALS else ExitCode.INVALID


def _progress(job: Job) -> str:
    assert job.progress is not None
    step = f" {job.progress.step}/{job.progress.steps}" if job.progress.steps else ""
    loss = f", loss {job.progress.loss:.4f}" if job.progress.loss is not None else ""
    age_s = (datetime.now(UTC) - job.progress.at).total_seconds()
    return f"{job.progress.phase}{step}{loss} ({max(0, age_s):.0f} s ago)"


def _local(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"

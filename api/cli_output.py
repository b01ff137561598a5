"""What the CLI prints: sentences and tables for people, JSON for programs, and which exit code says what."""

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from api.client import ApiError, ApiUnavailable, DamagedDownload
from api.schemas import Job, JobEvent
from jobs.errors import InvalidSpec
from jobs.status import Status

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

COLOURS = {Status.SUCCEEDED: "green", Status.FAILED: "red", Status.CANCELLED: "yellow"}


class Exit(IntEnum):
    """What the exit code says. docs/cli.md has the same table, and a test compares them."""

    OK = 0
    JOB_FAILED = 1  # the job that was followed failed
    INVALID = 2  # the command line or the spec is at fault
    REFUSED = 3  # no such job, no such token
    UNAVAILABLE = 4  # the server or the network is at fault: try again later
    CANCELLED = 5  # the job that was followed was cancelled
    INTERRUPTED = 130  # Ctrl-C


def fail(code: Exit, message: str) -> NoReturn:
    """End with `code` and a message on standard error."""
    err.print(f"[red]loraq:[/] {_plain(message)}")
    raise typer.Exit(code)


@contextmanager
def named_errors() -> Generator[None]:
    """Turn what can go wrong into a message and an exit code."""
    try:
        yield
    except InvalidSpec as error:
        for problem in error.problems:
            err.print(f"[red]loraq:[/] {_plain(': '.join(filter(None, (problem.field, problem.message))))}")
        raise typer.Exit(Exit.INVALID) from None
    except ApiError as error:
        for each in error.problem.problems or ():
            err.print(f"[red]loraq:[/] {_plain(': '.join(filter(None, (each.field, each.message))))}")
        if not error.problem.problems:
            err.print(f"[red]loraq:[/] {_plain(error.problem.detail)}")
        refused = error.problem.status in (401, 403, 404)
        raise typer.Exit(Exit.REFUSED if refused else Exit.INVALID) from None
    except (ApiUnavailable, DamagedDownload) as error:
        fail(Exit.UNAVAILABLE, str(error))
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        fail(Exit.INVALID, str(error))


def print_json(value: BaseModel | dict[str, Any]) -> None:
    """One JSON object on one line of standard output."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def job_table(job: Job) -> Table:
    """Everything worth knowing of one job."""
    table = Table.grid(padding=(0, 2))
    colour = COLOURS.get(job.status, "cyan")
    rows: list[tuple[str, str]] = [
        ("job", job.id),
        ("name", job.spec.name),
        ("status", f"[{colour}]{job.status}[/]"),
        ("submitted", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("attempts", str(len(job.attempts))),
        ("output", job.output_uri),
    ]
    if job.progress is not None:
        at = f"{job.progress.phase}, step {job.progress.step} of {job.progress.steps}"
        rows.append(("progress", at if job.progress.steps else job.progress.phase))
        if job.progress.loss is not None:
            rows.append(("loss", f"{job.progress.loss:.4f}"))
    if job.failure is not None:
        rows.append(("failure", f"[red]{job.failure.reason}[/]: {_plain(job.failure.message)}"))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", value)
    return table


def event_line(event: JobEvent) -> str:
    """One event as a sentence."""
    return f"[dim]{event.at:%H:%M:%S}[/] {_plain(_sentence(event))}"


def _sentence(event: JobEvent) -> str:
    data: dict[str, Any] = dict(event.data)
    match event.kind:
        case "status":
            why = f": {data['message']} ({data['reason']})" if data.get("message") else ""
            return f"The job is {data['to']}{why}"
        case "cancel_requested":
            return "Its owner asked to cancel it"
        case "phase":
            return f"Attempt {event.attempt} is {data['name']}"
        case "encoded":
            return f"Encoded {data['done']} of {data['total']} pictures and captions"
        case "dataset":
            sizes = ", ".join(f"{count} of {size}" for size, count in data.get("bucket_sizes", {}).items())
            return f"The dataset has {data['pictures']} pictures: {sizes}"
        case "step":
            return f"Step {data['step']} of {data['steps']}: loss {data['loss']:.4f}, {data['seconds']:.2f} s"
        case "sample" | "checkpoint":
            return f"Made {data['path']}"
        case "warning":
            return f"Warning: {data['message']}"


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    return text.replace("[", r"\[")

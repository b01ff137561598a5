"""Follows a job on the terminal: a progress bar for a person, plain lines for a file or a pipe, JSON for a program."""

from time import monotonic
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from api.cli_events import line
from api.cli_output import STYLES, ExitCode, Output, printable
from api.client import Loraq
from api.schemas import JobEvent
from jobs.status import Status

LINE_EVERY_S = 5.0
"""A step is a line of its own only this often, where there is no bar."""

_EXIT_CODES = {
    Status.SUCCEEDED: ExitCode.OK,
    Status.FAILED: ExitCode.JOB_FAILED,
    Status.CANCELLED: ExitCode.CANCELLED,
}


def follow(loraq: Loraq, job_id: str, output: Output) -> ExitCode:
    """Show a job to its end. Ctrl-C stops the showing, not the job."""
    try:
        if output.as_json:
            for event in loraq.events(job_id):
                output.json(event)
        elif output.err.is_terminal:
            with Bar(output.err) as bar:
                for event in loraq.events(job_id):
                    bar.show(event)
        else:
            lines = Lines(output)
            for event in loraq.events(job_id):
                lines.show(event)
    except KeyboardInterrupt:
        output.say(
            f"No longer following; job {job_id} goes on. "
            f"Follow it again: loraq logs -f {job_id}. End it: loraq cancel {job_id}."
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return _EXIT_CODES[loraq.get(job_id).status]


class Lines:
    """A line an event, steps and encoded pictures only every few seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._next_at = 0.0

    def show(self, event: JobEvent) -> None:
        """One event."""
        if event.kind in ("step", "encoded"):
            last = event.data.get("step", event.data.get("done")) == event.data.get("steps", event.data.get("total"))
            if monotonic() < self._next_at and not last:
                return
            self._next_at = monotonic() + LINE_EVERY_S
        self._output.out.print(printable(line(event)))


class Bar:
    """Phase, bar, step, loss, seconds a step, time left and time in this phase; changes and warnings stand above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._phase("waiting")
        self._seconds: float | None = None

    def show(self, event: JobEvent) -> None:
        """One event."""
        data = event.data
        match event.kind:
            case "phase":
                self._progress.remove_task(self._task)
                self._task = self._phase(str(data["name"]))
            case "encoded":
                self._count(data["done"], data["total"])
            case "step":
                self._count(data["step"], data["steps"])
                self._figures(event)
            case _:
                style = STYLES.get(Status(str(data["to"])), "") if event.kind == "status" else ""
                self._progress.console.print(printable(line(event)), style=style)

    def _phase(self, name: str) -> TaskID:
        """A bar of its own, because one that has once been counted cannot go back to not knowing how long."""
        return self._progress.add_task(printable(name), total=None, count="", figures="")

    def _count(self, done: object, total: object) -> None:
        assert isinstance(done, int)
        assert isinstance(total, int)
        self._progress.update(self._task, completed=done, total=total, count=f"{done}/{total}")

    def _figures(self, event: JobEvent) -> None:
        step, steps, loss, seconds = (event.data[name] for name in ("step", "steps", "loss", "seconds"))
        assert isinstance(step, int)
        assert isinstance(steps, int)
        assert isinstance(loss, int | float)
        assert isinstance(seconds, int | float)
        # A running mean, so that one slow step does not throw the estimate about.
        self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds
        left = _duration((steps - step) * self._seconds)
        figures = f"loss {loss:.4f}  {self._seconds:.2f} s/step  {left} left"
        self._progress.update(self._task, figures=figures)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

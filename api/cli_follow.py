"""Following a job to its end: a progress bar on a terminal, lines elsewhere, JSON lines for programs."""

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from api.cli_output import Exit, err, event_line, out, print_json
from api.client import Loraq
from api.schemas import JobEvent
from jobs.status import Status

_ENDS = {Status.SUCCEEDED: Exit.OK, Status.FAILED: Exit.JOB_FAILED, Status.CANCELLED: Exit.CANCELLED}


def follow(loraq: Loraq, job_id: str, *, as_json: bool, bar: bool) -> Exit:
    """Show the job's events until it has ended; the exit code says how. Ctrl-C leaves the job as it is."""
    try:
        if as_json or not (bar and out.is_terminal):
            return _follow_lines(loraq, job_id, as_json)
        return _follow_bar(loraq, job_id)
    except KeyboardInterrupt:
        err.print(f"\nThe job goes on. Look again: loraq logs -f {job_id}   End it: loraq cancel {job_id}")
        return Exit.INTERRUPTED


def _follow_lines(loraq: Loraq, job_id: str, as_json: bool) -> Exit:
    for event in loraq.events(job_id):
        if as_json:
            print_json(event)
        elif _worth_a_line(event):
            out.print(event_line(event))
    return _ENDS[loraq.get(job_id).status]


def _follow_bar(loraq: Loraq, job_id: str) -> Exit:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("queued", total=1, note="")
        for event in loraq.events(job_id):
            _show(progress, task, event)
    return _ENDS[loraq.get(job_id).status]


def _show(progress: Progress, task: TaskID, event: JobEvent) -> None:
    data = event.data
    match event.kind:
        case "phase":
            progress.reset(task, description=str(data["name"]), total=1, note="")
        case "encoded":
            progress.update(task, completed=_number(data["done"]), total=_number(data["total"]))
        case "step":
            note = f"loss {_number(data['loss']):.4f}  {_number(data['seconds']):.2f} s/step"
            progress.update(task, completed=_number(data["step"]), total=_number(data["steps"]), note=note)
        case "status" | "dataset" | "warning" | "cancel_requested":
            progress.console.print(event_line(event))
        case "sample" | "checkpoint":
            pass  # the bar moves on; `loraq pull` brings them


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _worth_a_line(event: JobEvent) -> bool:
    """One line for each tenth of the pictures, not for each."""
    if event.kind != "encoded":
        return True
    done, total = _number(event.data["done"]), _number(event.data["total"])
    return done == total or done % max(1, total // 10) == 0

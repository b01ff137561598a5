"""`loraq up`: everything on this machine, until Ctrl-C."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.table import Table

from api.cli_connection import data_folder
from api.cli_output import ExitCode, Output
from api.processes import ChildFailed
from api.servers import ServerMissing
from api.stack import Stack
from api.stack_state import CLIENT_FILE, FolderInUse


def up(
    data: Annotated[
        Path | None, typer.Option(help="Folder for all data. Default: $LORAQ_HOME, else .loraq here.", file_okay=False)
    ] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Start no worker: jobs wait.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the API. Default: a free one.", min=1, max=65535)] = None,
    allow_folder: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that file:// in a spec may name; repeatable. Default: none.", file_okay=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False,
) -> None:
    """Start everything on this machine: Redis, an object store, the API and a worker.

    Data lies in one folder and is found again. Ctrl-C ends it all in order.
    """
    output = Output(as_json)
    stop = threading.Event()
    stack = Stack(data or data_folder(), not no_worker, port, allow_folder or ())
    _interrupt_on(signal.SIGTERM, signal.SIGHUP)  # while it starts, as Ctrl-C does
    try:
        output.say(f"Starting, with all data in {stack.folder} ...")
        stack.start()
    except (FolderInUse, ServerMissing, ChildFailed) as error:
        output.error("up_failed", str(error))
        raise typer.Exit(ExitCode.INVALID if isinstance(error, FolderInUse) else ExitCode.JOB_FAILED) from None
    try:
        _set_on(stop, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        _show(stack, output)
        stack.watch(stop)
    except ChildFailed as error:
        output.error("part_failed", f"{error}\nEnding the others.")
        raise typer.Exit(ExitCode.JOB_FAILED) from None
    finally:
        output.say("Ending; a running job goes back to the queue ...")
        stack.close()
    output.say(f"Ended. The data stays in {stack.folder}.")


def _show(stack: Stack, output: Output) -> None:
    if output.as_json:
        parts = [
            {"name": part.name, "where": part.where, "pid": part.pid, "log": str(part.log)} for part in stack.parts
        ]
        output.json({"url": stack.url, "data": str(stack.folder), "parts": parts})
        return
    table = Table("", "where", "process", "log", box=None, padding=(0, 2, 0, 0))
    for part in stack.parts:
        table.add_row(part.name, part.where, str(part.pid), str(part.log))
    output.out.print(table)
    output.say(
        f"\nAll is well. The CLI finds the API by {stack.folder / CLIENT_FILE}; in another terminal, try:\n"
        "  loraq submit SPEC.yaml --dataset PHOTOS/ --follow\nCtrl-C ends it."
    )


def _interrupt_on(*signals: signal.Signals) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, interrupt)


def _set_on(stop: threading.Event, *signals: signal.Signals) -> None:
    for each in signals:
        signal.signal(each, lambda number, frame: stop.set())

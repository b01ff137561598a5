"""`loraq add-model`: brings a base model into the bucket, for operators."""

from typing import Annotated

import typer
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from api.base_models import ModelNotBrought, bring
from api.cli_output import ExitCode, Output
from jobs.errors import StorageError
from jobs.settings import Settings
from jobs.storage import Storage


def add_model(
    source: Annotated[
        str, typer.Argument(help="A URL or a file, which may end in #sha256=...; - reads standard input.")
    ],
    name: Annotated[str | None, typer.Option(help="What it is called there. Default: its own name.")] = None,
    bucket: Annotated[str, typer.Option(envvar="LORAQ_MODELS_BUCKET", help="Where it goes.")] = "models",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False,
) -> None:
    """Bring a base model into the bucket. Needs the object store (LORAQ_S3_*), not the API."""
    output = Output(as_json)
    columns = ("{task.description}", DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=output.err, transient=True, disable=not output.err.is_terminal) as progress:
        task = progress.add_task("bringing", total=None)
        try:
            uri, brought = bring(source, bucket, Storage(Settings()), lambda n: progress.advance(task, n), name)
        except ModelNotBrought as error:
            output.error(error.code, str(error))
            raise typer.Exit(ExitCode.REFUSED) from None
        except StorageError as error:
            output.error(error.code, str(error))
            raise typer.Exit(ExitCode.UNAVAILABLE) from None
    if as_json:
        output.json({"uri": str(uri), "brought": brought})
    else:
        output.out.print(str(uri))
        output.say("Name it as base_model in a spec." if brought else "It was there already, and is left as it is.")

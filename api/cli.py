"""`loraq`: the command line, through the API only. docs/cli.md describes it."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli_audit import audit
from api.cli_connection import connect
from api.cli_doctor import doctor
from api.cli_events import line
from api.cli_follow import follow
from api.cli_init import init
from api.cli_merge import merge
from api.cli_models import add_model
from api.cli_output import EXIT_CODES, ExitCode, Output, printable
from api.cli_recover import recover
from api.cli_tokens import token_app
from api.cli_up import up
from api.cli_uploads import with_uploads
from api.cli_workers import workers
from api.client import Loraq
from jobs.status import Status

_EPILOG = "\n\n".join(["Exit codes:", *(f"{code.value:>3}  {meaning}" for code, meaning in EXIT_CODES.items())])

app = typer.Typer(
    name="loraq",
    help="SDXL LoRA trainings as batch jobs: describe one in a short spec, submit it, collect the weights.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(token_app, name="token")
app.command()(up)
app.command()(init)
app.command("add-model")(add_model)
app.command()(merge)
app.command()(workers)
app.command()(doctor)
app.command()(audit)
app.command()(recover)

SpecFile = Annotated[
    typer.FileBinaryRead, typer.Argument(metavar="SPEC", help="YAML or JSON file; - reads standard input.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id, as `loraq list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")]


@app.command()
def submit(
    spec: SpecFile,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Upload this folder or archive first and train on it.", exists=True),
    ] = None,
    regularisation: Annotated[
        Path | None,
        typer.Option(help="Upload these regularisation pictures, too, a folder or an archive.", exists=True),
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Show the job to its end.")] = False,
    pull_to: Annotated[
        Path | None, typer.Option("--pull", help="Follow it, and download what it left here.", file_okay=False)
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes a repeat harmless: the same key and spec give the same job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    output = Output(as_json)
    with output.explained(), connect(output.waits) as loraq:
        text = spec.read()
        content = with_uploads(loraq, text, {"dataset": dataset, "dataset.regularisation": regularisation}, output)
        job = loraq.submit(content, idempotency_key)
        if as_json:
            output.json(job)
        else:
            output.out.print(job.id)
            output.say(f"Job {job.id} ({job.spec.name}) is {job.status}.")
        if follow_it or pull_to:
            code = follow(loraq, job.id, output)
            output.job(loraq.get(job.id))
            if pull_to and code == ExitCode.OK:
                _pull(loraq, job.id, pull_to, output)
            raise typer.Exit(code)


@app.command()
def validate(spec: SpecFile, as_json: AsJson = False) -> None:
    """Check a spec without submitting it; every field at fault is named."""
    output = Output(as_json)
    with output.explained(), connect() as loraq:
        valid = loraq.validate(spec.read())
        if as_json:
            output.json(valid)
        else:
            training = valid.spec.training
            output.out.print(
                f"In order: {valid.trainable_parameters:,} trainable parameters, {training.steps} steps of "
                f"{training.batch_size * training.gradient_accumulation} pictures at {training.resolution} px."
            )


@app.command("list")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs that stand here.")] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=200)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on behind the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    output = Output(as_json)
    with output.explained(), connect() as loraq:
        output.page(loraq.list(status, limit, cursor))


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job: where it stands, its attempts, why it failed."""
    output = Output(as_json)
    with output.explained(), connect() as loraq:
        output.job(loraq.get(job))


@app.command()
def logs(
    job: JobId,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what happened to a job."""
    output = Output(as_json)
    with output.explained(), connect() as loraq:
        if follow_it:
            raise typer.Exit(follow(loraq, job, output))
        for event in loraq.events(job, follow=False):
            output.json(event) if as_json else output.out.print(printable(line(event)))


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Cancel a job: a waiting one at once, a running one as soon as it can."""
    output = Output(as_json)
    with output.explained(), connect(output.waits) as loraq:
        cancelled = loraq.cancel(job)
        if as_json:
            output.json(cancelled)
        else:
            asked = "was asked to stop" if cancelled.status.running else f"is {cancelled.status}"
            output.out.print(f"Job {job} {asked}.")


@app.command()
def retry(
    job: JobId,
    steps: Annotated[int | None, typer.Option(help="Steps in all, if other than before.", min=1, max=1_000_000)] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a failed or cancelled job anew, as a new job that goes on from the old one's newest checkpoint."""
    output = Output(as_json)
    with output.explained(), connect(output.waits) as loraq:
        again = loraq.retry(job, steps)
        if as_json:
            output.json(again)
        else:
            output.out.print(again.id)
            output.say(f"Job {again.id} tries {job} again.")


@app.command()
def pull(
    job: JobId,
    to: Annotated[
        Path | None, typer.Option(help="Folder for the files. Default: one named for the job.", file_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download what a job left, checked by SHA-256. Files that are there already, whole, are kept."""
    output = Output(as_json)
    with output.explained(), connect() as loraq:
        _pull(loraq, job, to or Path(job), output)


@app.command("webhook-secret")
def webhook_secret(as_json: AsJson = False) -> None:
    """Print the secret with which a receiver checks your webhooks."""
    output = Output(as_json)
    with output.explained(), connect() as loraq:
        secret = loraq.webhook_secret()
        output.json({"secret": secret}) if as_json else output.out.print(secret)


def main() -> None:
    """The command `loraq`."""
    app()


def _pull(loraq: Loraq, job: str, folder: Path, output: Output) -> None:
    pulled = loraq.pull(job, folder, lambda file: output.say(f"{file.path} ({_size(file.size_bytes)})"))
    if output.as_json:
        files = [{"path": str(folder / file.path), "sha256": file.sha256} for file in loraq.artifacts(job).files]
        output.json({"folder": str(folder), "files": files, "fetched": len(pulled.fetched)})
    else:
        kept = f"; {len(pulled.already_there)} were there already" if pulled.already_there else ""
        output.out.print(f"{_files(len(pulled.fetched))} fetched into {folder}{kept}.")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


if __name__ == "__main__":
    main()

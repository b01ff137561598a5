"""The command `loraq`: trainings from the terminal, through the HTTP API and through nothing else."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import yaml
from redis import Redis
from redis.exceptions import RedisError
from rich.table import Table

from api.auth import create_token
from api.cli_follow import follow
from api.cli_output import COLOURS, Exit, err, event_line, fail, job_table, named_errors, out, print_json
from api.client import Loraq, dataset_files
from api.processes import ChildFailed
from api.schemas import PICTURE_ENDINGS, Job
from api.servers import ServerMissing
from api.stack import Stack, StackBusy, read_address
from jobs.settings import Settings
from jobs.spec_text import MAX_SPEC_BYTES
from jobs.status import Status

app = typer.Typer(
    no_args_is_help=True,
    help="SDXL LoRA trainings as batch jobs.",
    epilog="Exit codes: 0 well; 1 the job failed; 2 command line or spec at fault; 3 refused or not found; "
    "4 server or network unavailable; 5 the job was cancelled; 130 Ctrl-C.",
)
tokens = typer.Typer(no_args_is_help=True, help="Tokens, for operators: needs LORAQ_REDIS_URL.")
app.add_typer(tokens, name="token")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `submit` and `list` show it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, on standard output.")]
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML or JSON file; jobs/examples/ has some to copy.")]


@app.command()
def up(
    data: Annotated[Path | None, typer.Option(help="Folder that keeps everything. [default: .loraq]")] = None,
    worker: Annotated[bool, typer.Option(help="Start a worker too.")] = True,
    port: Annotated[int | None, typer.Option(help="Port of the API; a free one by default.")] = None,
    allow_folder: Annotated[list[Path] | None, typer.Option(help="Folder that file:// may name. Repeatable.")] = None,
) -> None:
    """Run everything on this machine, without Docker, until Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    folder = data or _home()
    try:
        with Stack(folder, worker=worker, port=port, allow_folders=allow_folder or ()) as stack:
            table = Table("part", "process", "where", box=None, pad_edge=False)
            where = {"api": stack.address.url, "s3": str(stack.folder / "s3"), "redis": str(stack.folder / "redis")}
            for name, child in stack.children.items():
                table.add_row(name, str(child.pid), where.get(name, str(child.log)))
            out.print(table)
            out.print(f"\n[green]loraq is up.[/] Base models go into {stack.folder}/s3/models/. Ctrl-C ends it.")
            stack.run()
    except KeyboardInterrupt:
        out.print("\nloraq is down. Everything is kept for the next `loraq up`.")
    except (StackBusy, ServerMissing, ChildFailed) as error:
        fail(Exit.JOB_FAILED, str(error))


@app.command()
def submit(
    spec: SpecFile,
    dataset: Annotated[Path | None, typer.Option(help="Upload this folder and train on it.")] = None,
    follow_job: Annotated[bool, typer.Option("--follow", "-f", help="Show the job until it has ended.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and spec give the same job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    with named_errors(), _client() as loraq:
        text = _read_spec(spec)
        if dataset is not None:
            text = _with_dataset(loraq, text, dataset)
        job = loraq.submit(text, idempotency_key)
        if as_json:
            print_json(job)
        else:
            out.print(f"Submitted job {job.id} ({job.spec.name}).")
        if follow_job:
            code = follow(loraq, job.id, as_json=as_json, bar=True)
            _say_end(loraq.get(job.id), as_json)
            raise typer.Exit(code)
        if not as_json:
            out.print(f"Follow it: loraq logs -f {job.id}")


@app.command()
def validate(spec: SpecFile, as_json: AsJson = False) -> None:
    """Check a spec without submitting it."""
    with named_errors(), _client() as loraq:
        valid = loraq.validate(_read_spec(spec))
        if as_json:
            print_json(valid)
        else:
            out.print(f"{spec} is valid: {valid.trainable_parameters:,} trainable parameters on SDXL.")


@app.command("list")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs that stand here.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show your jobs, newest first."""
    with named_errors(), _client() as loraq:
        page = loraq.list(status, cursor, limit)
        if as_json:
            print_json(page)
            return
        table = Table("job", "name", "status", "submitted (UTC)", "why", box=None, pad_edge=False)
        for job in page.jobs:
            colour = COLOURS.get(job.status, "cyan")
            reason = str(job.failure.reason) if job.failure else ""
            table.add_row(job.id, job.name, f"[{colour}]{job.status}[/]", f"{job.created_at:%Y-%m-%d %H:%M}", reason)
        out.print(table if page.jobs else "No jobs yet. Submit one: loraq submit SPEC")
        if page.next_cursor:
            out.print(f"More: loraq list --cursor {page.next_cursor}")


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with named_errors(), _client() as loraq:
        job = loraq.get(job_id)
        if as_json:
            print_json(job)
        else:
            out.print(job_table(job))


@app.command()
def logs(
    job_id: JobId,
    follow_job: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened to a job."""
    with named_errors(), _client() as loraq:
        if follow_job:
            raise typer.Exit(follow(loraq, job_id, as_json=as_json, bar=False))
        after: str | None = None
        while events := loraq.past_events(job_id, after):
            for event in events:
                print_json(event) if as_json else out.print(event_line(event))
            after = events[-1].id


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job: a waiting one at once, a running one as soon as it can."""
    with named_errors(), _client() as loraq:
        job = loraq.cancel(job_id)
        if as_json:
            print_json(job)
        elif job.status is Status.CANCELLED:
            out.print(f"Job {job.id} is cancelled.")
        elif job.status.final:
            out.print(f"Job {job.id} had ended before: it {job.status}.")
        else:
            out.print(f"Job {job.id} was asked to stop. See: loraq logs -f {job.id}")


@app.command()
def pull(
    job_id: JobId,
    to: Annotated[Path | None, typer.Option(help="Folder. [default: one named after the job]")] = None,
    as_json: AsJson = False,
) -> None:
    """Download what a job left, verified by SHA-256. Files that are there already are left alone."""
    with named_errors(), _client() as loraq:
        folder = to or Path(job_id)
        paths = loraq.pull(job_id, folder)
        if as_json:
            print_json({"folder": str(folder), "files": [str(path) for path in paths]})
        else:
            size_mb = sum(path.stat().st_size for path in paths) / 1e6
            out.print(f"{len(paths)} files, {size_mb:.1f} MB, in {folder}/, every one as the manifest says.")


@tokens.command("create")
def create(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="Whose token: a-z, 0-9 and -.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a token. It is shown this once: only its hash is kept."""
    try:
        with Redis.from_url(Settings().redis_url.get_secret_value()) as redis:
            token = create_token(redis, owner, name)
    except RedisError as error:
        fail(Exit.UNAVAILABLE, f"Redis does not answer at LORAQ_REDIS_URL: {error}")
    except ValueError as error:
        fail(Exit.INVALID, str(error))
    if as_json:
        print_json({"owner": owner, "token": token})
    else:
        out.print(token)


def main() -> None:
    """The entry point."""
    app()


def _home() -> Path:
    return Path(os.environ.get("LORAQ_HOME", ".loraq"))


def _client() -> Loraq:
    """A client for LORAQ_API_URL and LORAQ_API_TOKEN, else for the `loraq up` of this folder."""
    url, token = os.environ.get("LORAQ_API_URL"), os.environ.get("LORAQ_API_TOKEN")
    if url and token:
        return Loraq(url, token)
    if url or token:
        fail(Exit.INVALID, "LORAQ_API_URL and LORAQ_API_TOKEN belong together: set both or none.")
    address = read_address(_home())
    if address is None:
        fail(Exit.INVALID, "No server is named: set LORAQ_API_URL and LORAQ_API_TOKEN, or run `loraq up` here.")
    return Loraq(address.url, address.token)


def _read_spec(path: Path) -> str:
    if not path.is_file():
        fail(Exit.INVALID, f"There is no file {path}. jobs/examples/ has specs to copy.")
    if path.stat().st_size > MAX_SPEC_BYTES:
        fail(Exit.INVALID, f"{path} has {path.stat().st_size} bytes; the limit of a spec is {MAX_SPEC_BYTES}.")
    return path.read_text(encoding="utf-8")


def _with_dataset(loraq: Loraq, text: str, folder: Path) -> str:
    """The spec with dataset.uri naming the uploaded folder. A spec at fault is told before anything is uploaded."""
    loraq.validate(text)
    data: dict[str, Any] = yaml.safe_load(text)
    files = dataset_files(folder)
    pictures = sum(path.suffix.lower() in PICTURE_ENDINGS for path in files)
    err.print(f"Uploading {pictures} pictures and {len(files) - pictures} captions from {folder}")
    data["dataset"]["uri"] = loraq.upload_dataset(folder, str(data["name"]))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _say_end(job: Job, as_json: bool) -> None:
    if as_json or not job.status.final:
        return
    out.print(job_table(job))
    if job.status is Status.SUCCEEDED:
        out.print(f"\nGet it: loraq pull {job.id}")


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

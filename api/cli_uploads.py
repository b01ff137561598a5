"""Pictures of the user's machine, uploaded for a spec once it is known to be in order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rich.progress import Progress

from api.cli_output import Output
from api.client import Loraq
from api.client_errors import ApiError
from api.local_dataset import LocalDataset, read_dataset
from jobs.spec_text import read_yaml

_TO_BE_UPLOADED = "s3://datasets/to-be-uploaded/"
"""Stands for where an upload will lie, which may be in a folder that only its owner can read."""


def with_uploads(loraq: Loraq, text: bytes, given: Mapping[str, Path | None], output: Output) -> bytes | dict[str, Any]:
    """The spec in `text` with what is `given` uploaded and named, whatever the spec said there; `text` if nothing is.

    Args:
        given: section of the spec, with dots, to the folder or archive for its `uri`.

    Raises:
        ApiError: the spec is not in order; then nothing is uploaded.
        NotADataset: there is no picture in one of them.
    """
    contents = {section: read_dataset(path) for section, path in given.items() if path is not None}
    if not contents:
        return text
    values = read_yaml(text)
    spec = values if isinstance(values, dict) else {}
    for section in contents:
        spec = _with_uri(spec, section.split("."), _TO_BE_UPLOADED)
    _check(loraq, spec, [f"{section}.uri" for section in contents])
    for section, dataset in contents.items():
        spec = _with_uri(spec, section.split("."), _upload(loraq, dataset, output))
    return spec


def _check(loraq: Loraq, spec: dict[str, Any], not_known_yet: list[str]) -> None:
    """Raise the ApiError of a spec at fault, but not for addresses that only the upload will tell."""
    try:
        loraq.validate(spec)
    except ApiError as error:
        problems = [problem for problem in error.problems if problem.field not in not_known_yet]
        if problems or not error.problems:
            raise ApiError(error.code, error.detail, error.status, problems) from None


def _upload(loraq: Loraq, contents: LocalDataset, output: Output) -> str:
    output.say(
        f"Uploading {len(contents.pictures)} pictures and {len(contents.captions)} captions from {contents.path} ..."
    )
    if contents.left_out:
        verb = "Not used" if contents.archive else "Left out"
        output.say(f"{verb}, as neither picture nor caption: {', '.join(contents.left_out[:10])}", "yellow")
    with Progress(console=output.err, transient=True, disable=not output.err.is_terminal) as progress:
        task = progress.add_task("uploading", total=len(contents.files))
        return loraq.upload_dataset(contents, on_file=lambda _: progress.advance(task)).uri


def _with_uri(section: dict[str, Any], path: list[str], uri: str) -> dict[str, Any]:
    """`section` with `uri` in the section below it that `path` leads to, and all else as it was."""
    if not path:
        return section | {"uri": uri}
    below = section.get(path[0])
    inside = cast(dict[str, Any], below) if isinstance(below, dict) else {}
    return section | {path[0]: _with_uri(inside, path[1:], uri)}

"""`loraq merge`: a LoRA into a checkpoint, on this machine."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli_output import ExitCode, Output


def merge(
    base: Annotated[
        Path, typer.Argument(help="SDXL checkpoint, a single .safetensors file.", exists=True, dir_okay=False)
    ],
    lora: Annotated[
        Path, typer.Argument(help="LoRA, LoCon or DoRA: a .safetensors file.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; it must not be there yet.", dir_okay=False)],
    scale: Annotated[float, typer.Option(help="Strength of the LoRA.", min=-100, max=100)] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")] = False,
) -> None:
    """Merge a LoRA into a checkpoint, for programs that read no LoRA. Needs no API, but the worker's packages."""
    output = Output(as_json)
    if not all(importlib.util.find_spec(name) for name in ("worker", "torch")):
        output.error("usage", "loraq merge needs the worker's packages here: pip install 'loraq[worker]'.")
        raise typer.Exit(ExitCode.INVALID)
    # A process of its own: the API's side knows no torch.
    command = [sys.executable, "-m", "worker.merge", str(base), str(lora), str(out), f"--scale={scale!r}"]
    answer = _answer(subprocess.run(command, stdout=subprocess.PIPE, check=False))
    if error := answer.get("error"):
        output.error(error["code"], error["detail"])
        raise typer.Exit(ExitCode.REFUSED)
    if as_json:
        output.json(answer)
    else:
        output.out.print(answer["out"])
        output.say(f"Merged {answer['layers']} layers of {lora.name} into {base.name}.")


def _answer(ended: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The child's one line, or an error if it ended without."""
    try:
        return json.loads(ended.stdout)
    except ValueError:
        detail = f"The merge ended with code {ended.returncode}, and left nothing behind."
        return {"error": {"code": "crashed", "detail": detail}}

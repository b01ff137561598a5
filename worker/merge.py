"""Merges a LoRA into a checkpoint: what `loraq merge` runs, in a process of its own, because the CLI knows no torch.

    python -m worker.merge BASE LORA OUT [--scale 1.0]

Standard output has one JSON object: {"out": "...", "layers": 722}, or {"error": {"code": "...", "detail": "..."}} with
exit code 1.
"""

import argparse
import json
from pathlib import Path

from worker.errors import TrainerError


def main(arguments: list[str] | None = None) -> int:
    """Merge; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.merge", description="Merge a LoRA into a checkpoint.")
    parser.add_argument("base", type=Path, help="single .safetensors file of an SDXL base model")
    parser.add_argument("lora", type=Path, help=".safetensors file of a LoRA, kohya's names or PEFT's")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the LoRA (default: 1.0)")
    told = parser.parse_args(arguments)
    from worker.lora.merge import merge  # imports torch: not for --help

    try:
        layers = merge(told.base, told.lora, told.out, told.scale)
    except TrainerError as error:
        return _failed(error.reason, str(error))
    except OSError as error:
        return _failed("io", str(error))
    print(json.dumps({"out": str(told.out), "layers": layers}))
    return 0


def _failed(code: str, detail: str) -> int:
    print(json.dumps({"error": {"code": code, "detail": detail}}))
    return 1


if __name__ == "__main__":
    raise SystemExit(main())

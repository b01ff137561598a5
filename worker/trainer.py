"""The trainer: one process that trains one adapter and reports facts.

    python -m worker.trainer CONFIG.json [--parent PID]

CONFIG.json is a `worker.loop.config.TrainerConfig`, written by `worker.loop.config_json.write_config`. On Linux the
process is killed when the thread that started it ends; with --parent it also ends at once if it was orphaned before it
could ask for that.

Several of them, started by torchrun, are the ranks of one training, one a GPU (worker/loop/ranks.py). They train as one
process does whose batch_size is that of all of them together. Rank 0 reports; another speaks only to say why they
failed, as the first of its machine to. A stop that one of them is asked for is a stop of all, after the same step.

Standard output carries facts and nothing else: one JSON object a line, flushed. Logs and tracebacks go to standard
error.

    {"fact": "phase", "name": "reading" | "encoding" | "loading" | "training" | "exporting"}
    {"fact": "dataset", "pictures": 8, "bucket_sizes": {"512x512": 5, ...}, "captions": [first five], ...}
    {"fact": "warning", "message": "..."}                     clamped, enlarged or skipped; training goes on
    {"fact": "missing", "files": ["latents/3f/3f0a....safetensors", ...]}     of the cache, if there is a cache_answer
    {"fact": "encoded", "done": 3, "total": 16, "anew": 1}    pictures, captions and prompts; those not in the cache
    {"fact": "step", "step": 1, "steps": 100, "loss": 0.12, "lr": 1e-4, "seconds": 0.3, "peak_bytes": 5573000000 | null}
    {"fact": "validation", "step": 50, "validation_loss": 0.13, "by_timestep": {"62": 0.3, ...}, "weights": "last"}
    {"fact": "sample", "step": 50, "path": "samples/step-000050-0.png"}
    {"fact": "checkpoint", "step": 50, "path": "checkpoints/step-000050"}

and exactly one of these, last:

    {"fact": "finished", "steps": 100, "loss_first": 0.14, "loss_last": 0.11, "files": ["lora.safetensors", ...]}
    {"fact": "stopped", "step": 57, "path": "checkpoints/step-000057"}            after SIGTERM: go on from path
    {"fact": "failed", "reason": "dataset_invalid" | ..., "message": "..."}       the only one with exit code 1, not 0

`dataset` has the fields of worker.data.report.DatasetReport but the warnings, and no more than twenty of `skipped`, of
`skipped_total`; dataset.json has all. Steps count from 1; a `validation` of step 0 comes before the first, and its
`weights` are "last" or "ema". Paths are relative to the output folder. `peak_bytes` is the most GPU memory allocated
since training began, null on a CPU. `loss_first` and `loss_last` are means over the first and last tenth of the steps,
at least one. `step` and `path` of `stopped` are null when this process had trained no step yet. `reason` is the
TrainerError's, or out_of_memory_gpu, out_of_memory_host, or crashed. A process that ends without one of the last three
was killed.
"""

import argparse
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO

from worker.errors import TrainerError
from worker.lifeline import die_with_parent
from worker.loop.config_json import read_config

WAIT_FOR_TORCHRUN_S = 10.0
"""How long a rank that lost another waits to be ended: torchrun has seen by then which one was the first to fail."""


class Facts:
    """Writes facts to a stream, one JSON object a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, fact: str, **fields: object) -> None:
        self._stream.write(json.dumps({"fact": fact, **fields}) + "\n")
        self._stream.flush()


class StopSignal:
    """Remembers that SIGTERM or SIGINT came."""

    def __init__(self) -> None:
        self._came = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._came = True

    def __call__(self) -> bool:
        return self._came


def main(arguments: list[str] | None = None) -> int:
    """Run one training; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.trainer", description="Train one adapter.")
    parser.add_argument("config", type=Path, help="CONFIG.json, a TrainerConfig")
    parser.add_argument("--parent", type=int, help="process id of the process that is to be obeyed")
    options = parser.parse_args(arguments)
    # All this before torch, which takes more than a second to import.
    faulthandler.register(signal.SIGUSR1)  # whoever finds it hanging asks for a traceback
    emit = Facts(_take_stdout())
    stop_requested = StopSignal()
    die_with_parent(options.parent)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("worker").setLevel(logging.INFO)
    training = _import_training()
    from worker.loop.ranks import PeerLost, Ranks  # imports torch

    ranks = Ranks()
    try:
        ranks = Ranks.of_environment()
        if stop_requested() and ranks.size == 1:  # several first hear of each other
            raise training.Stopped
        config = read_config(options.config)
        ranks.join(config.device)
        training.Training(config, emit if ranks.first else _silent, stop_requested, ranks).run()
    except training.Stopped:
        if ranks.first:
            emit("stopped", step=None, path=None)
    except Exception as error:
        traceback.print_exc()
        with suppress(PeerLost):  # the first machine has gone, and with it whoever listens
            ended_from_outside = isinstance(error, PeerLost) and _waited_for(stop_requested)
            if not ended_from_outside and (why := ranks.why(json.dumps(explain(error)))):
                reason, message = json.loads(why)
                emit("failed", reason=reason, message=message)
        if ranks.size > 1:
            os._exit(1)  # at once, so that torchrun sees it: an orderly end would wait for the other ranks
        return 1
    ranks.leave()
    return 0


def explain(error: Exception) -> tuple[str, str]:
    """The failure's reason, one of jobs.errors.FailureReason by value, and a sentence for a person."""
    import torch

    if isinstance(error, TrainerError):
        return error.reason, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out_of_memory_gpu",
            "The GPU's memory ran out: lower resolution, batch_size or rank, or use checkpointing.",
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "out_of_memory_host", "The machine's memory ran out: use a machine with more, or fewer pictures."
    first_line = (str(error).splitlines() or [""])[0]
    return "crashed", f"The trainer failed with {type(error).__name__}: {first_line}"


def _import_training() -> ModuleType:
    """worker.loop.training, and with it torch. What is imported stays for good: nobody collects garbage in it."""
    gc.disable()
    from worker.loop import training

    gc.freeze()
    gc.enable()
    return training


def _silent(fact: str, **fields: object) -> None:
    """What the other ranks have to report, rank 0 reports."""


def _waited_for(stop_requested: StopSignal) -> bool:
    """Whether torchrun ends this rank within a while, so that another one has failed and says why."""
    end_s = time.monotonic() + WAIT_FOR_TORCHRUN_S
    while not stop_requested() and time.monotonic() < end_s:
        time.sleep(0.1)
    return stop_requested()


def _take_stdout() -> TextIO:
    """Keep standard output for facts: whatever a library prints goes to standard error from here on."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return stream


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)  # all is written, and to take torch apart would hold the GPU for another half a second

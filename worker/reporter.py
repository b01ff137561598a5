"""What the trainer says, passed on: to the record, to the events, and to whoever moves files."""

import time

from jobs import events
from jobs.status import Status
from worker import telemetry
from worker.checkpoints import CheckpointUploads
from worker.encodings import Encodings
from worker.lease import Lease
from worker.process import Fact

COUNT_EVENT_S = 1.0
"""At most one event a second for steps and encoded pictures: a progress bar needs no more. metrics.jsonl has all."""


class Reporter:
    """Turns the trainer's facts into progress, events and the change from preparing to training."""

    def __init__(self, lease: Lease, uploads: CheckpointUploads, encodings: Encodings) -> None:
        self._lease = lease
        self._uploads = uploads
        self._encodings = encodings
        self._next_count_event_s = 0.0

    def tell(self, fact: Fact) -> None:
        """One fact, as worker/trainer.py names them."""
        data = {key: value for key, value in fact.items() if key != "fact"}
        match fact["fact"]:
            case "phase":
                self._lease.update(phase=data["name"])
                if data["name"] == "loading":
                    self._encodings.upload()
                if data["name"] == "training":
                    self._lease.move(Status.TRAINING)
                self._lease.event("phase", data)
                telemetry.tell("phase", **data)
            case "step":
                self._lease.update(
                    step=data["step"],
                    steps=data["steps"],
                    loss=data["loss"],
                    seconds_per_step=data["seconds"],
                    peak_bytes=data["peak_bytes"],
                )
                telemetry.tell("step", **data)
                self._count("step", data, last=data["step"] == data["steps"])
            case "missing":
                self._encodings.fetch(data["files"], self._lease.check)
            case "encoded":
                self._count("encoded", data, last=data["done"] == data["total"])
            case "checkpoint":
                self._uploads.checkpoint(data["path"], data["step"])  # an event once it is in the bucket
            case "sample":
                self._uploads.sample(data["path"], data["step"])
                self._lease.event("sample", data)
            case "dataset" | "validation" | "warning" as kind:
                self._lease.event(kind, data)
            case _:
                pass  # finished, stopped and failed end the trainer, and TrainerProcess tells how

    def _count(self, kind: events.Kind, data: Fact, last: bool) -> None:
        """An event of a kind that comes often: the last one, and now and then one before."""
        if last or time.monotonic() >= self._next_count_event_s:
            self._next_count_event_s = time.monotonic() + COUNT_EVENT_S
            self._lease.event(kind, data)

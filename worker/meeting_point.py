"""Where the machines of one training find each other: torch's key-value store on the first, for as long as it trains.

torchrun needs to be told who is who before it starts, and only the first machine knows what the queue gave it. So it
says so here; every other takes a number, and starts torchrun with that. The server is the one that torchrun then uses
itself (TCPStore's multi_tenant). It knows no password: the network between the machines must be a private one.
"""

import json
import socket
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Self

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

ANSWER_S = 5.0
"""How long to wait for a first machine that may have no training, or be gone."""


@dataclass(frozen=True)
class Job:
    """What all machines train together."""

    config: str  # path of CONFIG.json, the same on every machine
    gpus: int  # ranks on each
    machines: int


class MeetingPoint:
    """A training's, as one of its machines sees it."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    @classmethod
    def open(cls, address: str, job: Job) -> Self:
        """On the first machine: listen there, and say what is trained."""
        point = cls(_store(address, server=True))
        point._store.set("loraq/job", json.dumps(asdict(job)))
        point._store.add("loraq/machines", 1)
        return point

    @classmethod
    def find(cls, address: str) -> Self | None:
        """On another machine: None while nothing is trained."""
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), ANSWER_S).close()  # torch would log each failure with a stack
            return cls(_store(address, server=False))
        except (OSError, DistError):
            return None

    def job(self) -> Job:
        """What is trained. Raises DistError if the first machine has ended."""
        return Job(**json.loads(self._store.get("loraq/job")))

    def number(self) -> int:
        """Come, and take a number: 1, 2, and so on. Raises DistError if the first machine has ended."""
        return self._store.add("loraq/machines", 1) - 1

    def machines(self) -> int:
        """How many are there."""
        return self._store.add("loraq/machines", 0)

    def stands(self) -> bool:
        """Whether the first machine still listens."""
        try:
            return self.machines() > 0
        except DistError:
            return False


def _store(address: str, server: bool) -> TCPStore:
    host, _, port = address.rpartition(":")
    wait = timedelta(seconds=ANSWER_S)
    return TCPStore(host, int(port), is_master=server, timeout=wait, multi_tenant=server, wait_for_workers=False)

"""Over which machines a job's ranks are spread, and so what program trains it."""

from dataclasses import dataclass

from jobs.gpu_class import GpuClass
from jobs.settings import Settings


@dataclass(frozen=True)
class Spread:
    """So many ranks on each of so many machines."""

    ranks: int  # on each machine, one a GPU
    machines: int = 1
    rendezvous: str | None = None  # host:port where they meet

    def program(self) -> list[str]:
        """What python -m is to run, up to the path of CONFIG.json."""
        if self.machines > 1:
            return [
                "worker.launch",
                f"--gpus={self.ranks}",
                f"--machines={self.machines}",
                f"--rendezvous={self.rendezvous}",
            ]
        return ["worker.trainer"] if self.ranks == 1 else ["worker.launch", f"--gpus={self.ranks}"]


def spread(gpus: int, settings: Settings) -> Spread:
    """For a job of `gpus`: on this machine alone if it has so many, else on as many of each.

    A number that machines cannot share equally is left to this one, whose trainer says what it lacks. On a CPU, which
    is for tests, a machine counts as one with one GPU.
    """
    own = GpuClass.parse(settings.worker_class) if settings.worker_class else None
    here = own.gpus // settings.nodes if own and settings.device != "cpu" else 1
    if gpus <= here or gpus % settings.nodes or settings.nodes == 1:
        return Spread(gpus)
    return Spread(gpus // settings.nodes, settings.nodes, settings.rendezvous)

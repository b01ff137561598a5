"""Which of the machine's GPUs are this worker's: several workers on one machine take theirs by locks.

A lock is a file in a folder that all of them share, named for the GPU. The kernel lets go of it when the worker and its
horse have ended, however they end, so a GPU is never lost; containers on one volume lock one another like processes.
"""

import fcntl
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.gpus import look
from jobs.settings import Settings

log = logging.getLogger(__name__)

TRY_AGAIN_S = 5.0


class NoGpu(Exception):
    """This machine has not the GPUs that the worker is to use; the message says what to do."""


def take_gpus(settings: Settings) -> None:
    """Make sure of the GPUs that this worker is to use, before it takes a job that would fail without them.

    Raises:
        NoGpu: they are not there.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the trainer counts GPUs as NVML and nvidia-smi do
    if settings.device == "cpu":
        return
    found = look()
    if settings.device == "cuda" and not found.gpus:
        raise NoGpu(
            f"LORAQ_DEVICE is cuda, and {found.why_none}. Give this machine, or this container, one (a driver, "
            "the NVIDIA container toolkit, a device reservation), or set LORAQ_DEVICE to cpu."
        )
    if found.gpus and settings.gpus != "all":
        claim_gpus(settings.gpus, [gpu.uuid for gpu in found.gpus], settings.data_dir.expanduser() / "gpus")


def claim_gpus(count: int, uuids: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Take `count` GPUs for the life of this process, and let CUDA see only them. Waits until so many are free.

    Args:
        uuids: of the GPUs of this machine, as CUDA_VISIBLE_DEVICES calls them, whichever come and go.
        folder: where the locks lie; made if it is not there.

    Raises:
        NoGpu: the machine has fewer.
    """
    if len(uuids) < count:
        raise NoGpu(
            f"LORAQ_GPUS is {count}, and the driver shows {len(uuids)} GPUs. Lower it, or give this machine, or this "
            "container, its GPUs: a driver, the NVIDIA container toolkit, a device reservation."
        )
    folder.mkdir(parents=True, exist_ok=True)
    told = False
    while not (claimed := _claim(uuids, count, folder)):
        if not told:
            log.warning("Waiting for %d free GPUs: other workers hold those of this machine.", count)
            told = True
        time.sleep(TRY_AGAIN_S)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
    log.info("This worker's GPUs: %s", ", ".join(claimed))
    return claimed


def _claim(uuids: Sequence[str], count: int, folder: Path) -> tuple[str, ...]:
    """The GPUs whose locks were taken: `count` of them, or none, so that two workers never wait for each other."""
    held: dict[str, int] = {}
    for uuid in uuids:
        lock = os.open(folder / f"{uuid}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        held[uuid] = lock  # left open: it is held until this process and its horse have ended
        if len(held) == count:
            return tuple(held)
    for lock in held.values():
        os.close(lock)
    return ()

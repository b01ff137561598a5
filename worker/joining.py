"""`python -m worker.joining`: this machine's GPUs for the trainings of another, which takes the jobs.

That one waits for it at LORAQ_RENDEZVOUS whenever a job needs more GPUs than it has; both see LORAQ_DATA_DIR, where the
inputs lie, on a file system that they share. What this machine is asked for is a stop of all: the job goes back to the
queue. If it is killed, or the first is, what is left of the attempt ends, and the next one meets anew.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from torch.distributed import DistError

from jobs.alive import Pulse
from jobs.logs import set_up_logging
from jobs.settings import Settings
from worker import stop
from worker.gpu_claim import NoGpu, take_gpus
from worker.meeting_point import Job, MeetingPoint
from worker.process import trainer_environment

LOOK_EVERY_S = 0.5
LEFT_ALONE_S = 30.0
"""How long ranks have to end by themselves when the first machine has: they may wait for it in a GPU kernel."""

log = logging.getLogger(__name__)


def main() -> int:
    """Take part in one training after another until SIGTERM. Returns the exit code."""
    set_up_logging()
    settings = Settings()
    if settings.rendezvous is None:
        log.error("LORAQ_RENDEZVOUS is not set: name host and port of the worker to train along with.")
        return os.EX_CONFIG
    try:
        take_gpus(settings)
    except NoGpu as error:
        log.error("Nothing can be trained here. %s", error)
        return 1
    stop.listen()
    pulse = Pulse(settings.alive_file)
    pulse.begin()
    log.info("Joins the trainings of the worker at %s", settings.rendezvous)
    seen = ""
    while not stop.requested.is_set():
        pulse.beat()
        point = MeetingPoint.find(settings.rendezvous)
        if point is not None:
            with suppress(DistError):  # the first machine has ended its training meanwhile
                job = point.job()
                if job.config != seen:  # one that is over is not gone at once
                    seen = job.config
                    _take_part(point, job, settings, pulse)
        stop.requested.wait(LOOK_EVERY_S)
    return 0


def _take_part(point: MeetingPoint, job: Job, settings: Settings, pulse: Pulse) -> None:
    number = point.number()
    if number >= job.machines:
        log.warning("The training of %s has all its %d machines: this one waits for the next.", job.config, number)
        return
    log.info("Machine %d of %d trains %s", number, job.machines, job.config)
    options = [f"--gpus={job.gpus}", f"--machines={job.machines}", f"--machine={number}"]
    options += [f"--rendezvous={settings.rendezvous}", f"--parent={os.getpid()}"]
    with subprocess.Popen(
        [sys.executable, "-m", "worker.launch", job.config, *options],
        env=trainer_environment(settings.cpu_threads),
        start_new_session=True,
    ) as launch:
        _watch(launch, point, settings.grace_s, pulse)
    log.info("The training of %s ended here with code %s", job.config, launch.returncode)


def _watch(launch: "subprocess.Popen[bytes]", point: MeetingPoint, grace_s: float, pulse: Pulse) -> None:
    """Until it has ended: pass a stop on, and end what is left of a training whose first machine is gone."""
    end_s = None
    while launch.poll() is None:
        pulse.beat()
        if end_s is None and stop.requested.is_set():
            launch.terminate()
            end_s = time.monotonic() + grace_s
        if end_s is None and not point.stands():
            end_s = time.monotonic() + LEFT_ALONE_S
        if end_s is not None and time.monotonic() > end_s:
            os.killpg(launch.pid, signal.SIGKILL)  # its ranks die with it
        stop.requested.wait(LOOK_EVERY_S) if end_s is None else time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())

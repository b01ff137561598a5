"""This machine, as far as a worker would need it: GPU, driver, and room on the disk."""

import os
import shutil
import subprocess
from pathlib import Path

from api.doctor.finding import Finding, Findings

ROOM_FAILED_GIB = 8.0
"""SDXL in BF16 is 6.5 GiB, and a job leaves checkpoints beside it."""


def look_at_gpu() -> list[Finding]:
    """What nvidia-smi says. No GPU is no fault: the API needs none."""
    found = Findings("gpu")
    if shutil.which("nvidia-smi") is None:
        found.skipped(
            "driver", "no nvidia-smi here: no GPU, or no driver. A worker here takes no job, unless LORAQ_DEVICE=cpu."
        )
        return found.all
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (subprocess.SubprocessError, OSError) as error:
        found.failed("driver", f"nvidia-smi does not run: {error}. Install the driver anew.")
        return found.all
    if answer.returncode:
        said = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        found.failed("driver", f"nvidia-smi ended with {answer.returncode}: {said} Load or install the driver.")
        return found.all
    for line in filter(None, map(str.strip, answer.stdout.splitlines())):
        found.ok("driver", line)
    if not found.all:
        found.failed("driver", "nvidia-smi lists no GPU: give this machine, or this container, one.")
    return found.all


def look_at_disk(data_dir: Path, cache_max_gib: float) -> list[Finding]:
    """Whether a worker can write to its folder, and has room for its caches."""
    found = Findings("disk")
    folder = data_dir.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        found.failed("data_dir", f"{folder} cannot be written to ({error.strerror}). Look at LORAQ_DATA_DIR.")
        return found.all
    free_gib = shutil.disk_usage(folder).free / 2**30
    said = f"{free_gib:.0f} GiB free at {folder}"
    if free_gib < ROOM_FAILED_GIB:
        found.failed("data_dir", f"{said}: not enough for one base model. Make room, or set LORAQ_DATA_DIR.")
    elif free_gib < cache_max_gib:
        found.warning("data_dir", f"{said}, but caches may take {cache_max_gib:g}. Lower LORAQ_CACHE_MAX_GIB.")
    else:
        found.ok("data_dir", said)
    return found.all

"""The GPUs of this machine, asked of nvidia-smi: this process must not touch CUDA."""

import shutil
import subprocess


def gpu_names() -> tuple[str, ...]:
    """One line a GPU: name, memory in MiB, driver. Empty where there is no GPU, or no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())

"""The GPUs of this machine, asked of nvidia-smi: this process must not touch CUDA."""

import os
import shutil
import subprocess


def gpu_names() -> tuple[str, ...]:
    """One line a GPU: name, memory in MiB, driver. Empty where there is no GPU, or no nvidia-smi."""
    return _ask("name,memory.total,driver_version")


def gpu_uuids() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls each GPU, which stays the same when others come and go."""
    return _ask("uuid")


def _ask(fields: str) -> tuple[str, ...]:
    """One line a GPU that this process may use: nvidia-smi itself looks past CUDA_VISIBLE_DEVICES."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())

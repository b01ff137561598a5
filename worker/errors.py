"""Errors of the trainer core.

TrainerError               a person can act on it; `reason` is one of jobs.errors.FailureReason, by value
├── DatasetInvalid         a picture, a caption or the folder is at fault, and the message names the file
├── BaseModelInvalid       the checkpoint is not a whole SDXL base model
├── LoRAInvalid            rank or targets do not fit the U-Net, or a LoRA's file does not fit them
├── NanLoss                the loss or the latents are no longer finite
├── GpusMissing            CUDA shows fewer GPUs than were asked for
├── RanksDiffer            the weights of one GPU are no longer those of the others
├── CheckpointInvalid      a checkpoint is incomplete or damaged
└── ResumeRefused          a checkpoint belongs to another training

Anything else that leaves the trainer is a bug or the machine's fault, and is reported as a crash.
"""


class TrainerError(Exception):
    """The training cannot go on, and the message says what to do."""

    reason = "crashed"


class DatasetInvalid(TrainerError):
    """The dataset cannot be trained on as it is."""

    reason = "dataset_invalid"


class BaseModelInvalid(TrainerError):
    """The base model cannot be read as SDXL."""

    reason = "base_model_invalid"


class LoRAInvalid(TrainerError):
    """The adapter cannot be put on this U-Net."""

    reason = "invalid_spec"


class CheckpointInvalid(TrainerError):
    """The checkpoint is incomplete or damaged."""


class ResumeRefused(TrainerError):
    """The checkpoint belongs to another training: what it was told has changed since."""

    reason = "resume_refused"


class NanLoss(TrainerError):
    """A number that training rests on is not finite any more."""

    reason = "nan_loss"


class GpusMissing(TrainerError):
    """CUDA shows fewer GPUs than were asked for; another worker may have more."""

    reason = "gpu_missing"


class RanksDiffer(TrainerError):
    """The weights of one GPU are no longer those of the others."""

"""What a job needs of a GPU, from its spec alone: the class in whose queue it waits.

`memory.budget_gib` or the preset say it; but no less than the training takes by the figures of
benchmarks/results/peak_memory_h100_2026-11-25.md, so that no job lands on a card that is too small for it.
"""

from jobs.gpu_class import SHARE, SIZES_GB, GpuClass, smallest_called, smallest_with
from jobs.presets import PRESET_GB
from jobs.spec import JobSpec
from jobs.spec_trained import LoRASpec

# Peaks of a full-size SDXL step in BF16, GiB allocated: 5.0 resident, and so much a picture of 1024 x 1024.
RESIDENT_GIB = 5.0
PICTURE_GIB = {("all", "qkv"): 0.52, ("none", "qkv"): 5.25}
PICTURE_OTHER_TARGETS_GIB = {"all": 0.55, "none": 6.3}  # measured with transformer
PICTURE_CONVOLUTIONS_GIB = 1.7  # besides, without checkpointing: inputs of the residual blocks; not measured
VAE_GIB = (
    2.5  # a picture of 1024 x 1024 through the VAE: ten activations of 128 channels in BF16, and their convolution
)
TEXT_RESIDENT_GIB = 1.52  # both text encoders in BF16, 817,720,320 weights, where they are trained along
TEXT_CAPTION_GIB = 0.27  # what they keep of a caption of 77 tokens for backward
OUTSIDE_GIB = 1.0  # CUDA's context 0.52, and blocks that the allocator cannot fill

# A fine-tuning of the whole U-Net: 2,567,463,684 weights in BF16 and, if so asked, masters in FP32; their gradients, in
# the same dtype; what the optimizer keeps, in FP32.
UNET_WEIGHTS = 2_567_463_684
UNET_GIB = UNET_WEIGHTS / 2**30  # a byte a weight
FINE_TUNING_BYTES = {"bfloat16": 2, "float32": 6}
FINE_TUNING_GRADIENT_BYTES = {"bfloat16": 2, "float32": 4}
FINE_TUNING_OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2.1, "adafactor": 0.02, "lion": 4}
FINE_TUNING_OPTIMIZER_BYTES_AT_MOST = 16  # prodigy's; schedule-free AdamW's with the copy while it is looked at
FINE_TUNING_STEP_GIB = (1.33, 0.28)  # besides, and a picture of 1024 x 1024 more

BYTES_A_WEIGHT = {"adamw": 16}  # of the adapter, FP32: weight, gradient and two moments
BYTES_A_WEIGHT_AT_MOST = 24  # with any other optimizer: prodigy keeps its start and a numerator besides
BYTES_A_MEAN = 4  # of it, with training.ema
PARAMETERS_PER_RANK = {
    "none": 0,
    "qkv": 1_118_720,
    "attention": 1_451_520,
    "transformer": 2_659_840,
    "locon": 3_074_240,
}
"""Sums of in + out over the layers of each target: an adapter's weights, by its rank (jobs/spec_trained.py)."""
TEXT_PARAMETERS_PER_RANK = {"attention": 401_408, "transformer": 903_168}
"""The same of both text encoders: 12 layers of 768 and 32 of 1280, feed-forward four times as wide."""


def trainable_weights(spec: JobSpec) -> int:
    """What is trained of a full-size SDXL; of a LoRA with patterns or overrides, so many at most."""
    return UNET_WEIGHTS if spec.fine_tuning else _adapter_weights(spec.lora)


def _adapter_weights(lora: LoRASpec) -> int:
    rank = max([lora.rank, *(override.rank or 0 for override in lora.overrides)])
    text = TEXT_PARAMETERS_PER_RANK[lora.text_encoders.targets] if lora.text_encoders else 0
    return (PARAMETERS_PER_RANK["locon" if lora.patterns else lora.targets] + text) * rank


def estimate_gib(spec: JobSpec) -> float:
    """GPU memory that the training takes, GiB a card, context included."""
    pictures = (spec.training.resolution / 1024) ** 2
    resident_gib, step_gib = _fine_tuning_gib(spec, pictures) if spec.fine_tuning else _lora_gib(spec, pictures)
    encode_gib = VAE_GIB * pictures
    draw_gib = resident_gib + VAE_GIB * pictures if spec.samples.prompts else 0.0
    return max(step_gib, encode_gib, draw_gib) + OUTSIDE_GIB


def _lora_gib(spec: JobSpec, pictures: float) -> tuple[float, float]:
    """What is there between steps, and the peak of one. `pictures`: of 1024 x 1024 in one of the spec's."""
    checkpointing, targets = spec.memory.checkpointing or "all", spec.lora.targets
    picture_gib = PICTURE_GIB.get((checkpointing, targets)) or PICTURE_OTHER_TARGETS_GIB[checkpointing]
    if checkpointing == "none" and (targets == "locon" or spec.lora.patterns):
        picture_gib += PICTURE_CONVOLUTIONS_GIB
    weight_bytes = BYTES_A_WEIGHT.get(spec.training.optimizer.name, BYTES_A_WEIGHT_AT_MOST)
    weight_bytes += BYTES_A_MEAN if spec.training.ema else 0
    adapter_gib = _adapter_weights(spec.lora) * weight_bytes / 2**30
    resident_gib = RESIDENT_GIB + adapter_gib
    captions_gib = 0.0
    if spec.lora.text_encoders:
        resident_gib += TEXT_RESIDENT_GIB
        captions_gib = spec.training.batch_size * spec.dataset.captions.max_tokens / 75 * TEXT_CAPTION_GIB
    return resident_gib, resident_gib + captions_gib + spec.training.batch_size * pictures * picture_gib


def _fine_tuning_gib(spec: JobSpec, pictures: float) -> tuple[float, float]:
    """The same without an adapter. Gradients come as activations go, so that the larger of both counts."""
    assert spec.fine_tuning
    weights, optimizer = spec.fine_tuning.weights, spec.training.optimizer.name
    moments = FINE_TUNING_OPTIMIZER_BYTES.get(optimizer, FINE_TUNING_OPTIMIZER_BYTES_AT_MOST)
    gradients_gib = UNET_GIB * FINE_TUNING_GRADIENT_BYTES[weights]
    resident_gib = UNET_GIB * (FINE_TUNING_BYTES[weights] + moments)
    exchange_gib = 4 * UNET_GIB if spec.gpus > 1 else 0.0  # all gradients in one buffer, in FP32
    images = spec.training.batch_size * pictures
    activations_gib = PICTURE_OTHER_TARGETS_GIB[spec.memory.checkpointing or "all"] * images
    constant_gib, picture_gib = FINE_TUNING_STEP_GIB
    peak_gib = max(gradients_gib, activations_gib) + exchange_gib + constant_gib + picture_gib * images
    return resident_gib, resident_gib + peak_gib


def needed_class(spec: JobSpec) -> GpuClass:
    """The smallest class of GPUs that the job may run on."""
    gpus, budget_gib = spec.gpus, spec.memory.budget_gib
    wanted_gb = budget_gib if budget_gib != "auto" else PRESET_GB[spec.preset] if spec.preset else 0
    least = smallest_with(estimate_gib(spec), gpus)
    wanted = smallest_called(wanted_gb, gpus)
    largest = GpuClass.of(SIZES_GB[-1], gpus)  # what is too large for any is refused by jobs/not_yet.py
    return max(least or largest, wanted or largest)


def largest_gib() -> float:
    """What the largest card has."""
    return SIZES_GB[-1] * SHARE

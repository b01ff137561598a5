"""Everything one training is told: the frozen dataclasses that CONFIG.json of `worker.trainer` is made of.

They import no torch, so that the worker's light processes can build one. `config_json.py` writes and reads them.
"""

from dataclasses import dataclass, field
from typing import Literal

from worker.data.config import DatasetConfig
from worker.lora.config import LoRAConfig

Format = Literal["kohya", "diffusers"]


@dataclass(frozen=True)
class LossConfig:
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the base model predicts; None means what it says of itself, else the noise, epsilon."""

    zero_terminal_snr: bool | None = None
    """Whether its noise schedule leaves nothing of the picture at the last timestep; None means what it says of itself,
    else that it leaves some. Only with v_prediction."""

    kind: Literal["mse", "huber"] = "mse"
    """Of the loss: squared error, or pseudo-Huber, which grows in a straight line beyond huber_c."""

    huber_c: float = 0.1
    min_snr_gamma: float | None = None
    """Cap of the signal-to-noise ratio in the loss weight, min(snr, gamma) / snr; None means off."""

    debiased: bool = False
    """Weigh by 1 / sqrt(snr) (debiased estimation). Not with min_snr_gamma: each replaces the other's weight."""

    noise_offset: float = 0.0
    """Standard deviation of a number added to all of a picture's noise, one a channel; 0 means off."""

    min_timestep: int = 0
    """The least timestep that is trained, and the greatest: 0..999, of 0 the least noise."""

    max_timestep: int = 999


OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "schedule_free_adamw"]


@dataclass(frozen=True)
class OptimizerConfig:
    name: OptimizerName = "adamw"
    learning_rate: float = 1e-4
    """Peak learning rate, reached at the end of the warm-up."""

    weight_decay: float = 1e-2
    """Decoupled weight decay, times the learning rate, a step."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True)
class ScheduleConfig:
    name: Literal["constant", "linear", "cosine", "cosine_with_restarts"] = "constant"
    """After the warm-up the learning rate stays, or falls to 0 at the end of training, in a straight line or along half
    a cosine; with restarts, once in each of `cycles` equal parts."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises in a straight line, from 1 / (warmup_steps + 1) of it in the first."""

    cycles: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """What the loop itself needs; the base model, the adapter and the batches are handed to it ready-made."""

    steps: int
    """Optimizer steps in all, those before a resume included."""

    seed: int = 0
    """Seeds the adapter, the order of pictures, noise, timesteps and caption dropout, each on a stream of its own."""

    gradient_accumulation: int = 1
    """Micro-steps an optimizer step: the effective batch is batch_size * gradient_accumulation."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    max_grad_norm: float | None = 1.0
    """The gradient of all adapter weights together is scaled down to this L2 norm; None means off."""

    loss: LossConfig = field(default_factory=LossConfig)

    ema_decay: float | None = None
    """Decay a step of the running average of the adapter weights, 0..1; None means off."""

    ema_device: Literal["training", "cpu"] = "training"
    """Where the average lies: beside the adapter, or in host memory, at the price of a copy a step."""


@dataclass(frozen=True)
class SamplesConfig:
    prompts: tuple[str, ...] = ()
    """One picture a prompt; none means no sample pictures."""

    every_n_steps: int | None = None
    """Drawn every so many steps, and once at the end; None means only at the end."""

    sampler_steps: int = 20
    guidance: float = 5.0
    """Weight of classifier-free guidance; 1 means off."""


@dataclass(frozen=True)
class ValidationConfig:
    pictures: int | None = None
    """Pictures held out of training; None means that `share` says how many. One of the two is given."""

    share: float | None = None
    """Of the different pictures, at least one and at most worker.data.held_out.MAX_HELD_OUT."""

    every_n_steps: int | None = None
    """Their loss is taken every so many steps, and before the first and after the last; None means only then."""


@dataclass(frozen=True)
class CheckpointsConfig:
    every_n_steps: int | None = None
    """How often the whole training state is saved; None means only when the trainer is told to stop."""

    keep: int = 2
    """How many of the newest checkpoints are kept, at least 1."""


@dataclass(frozen=True)
class HeaderConfig:
    """What the headers of the files say that training itself does not need to know."""

    name: str = "lora"
    """Of the output, for programs that call a LoRA by name."""

    title: str = "LoRA"
    """Of the output, for people."""

    base_model: str | None = None
    """Name of the base model's file or folder; None: that which it has on this machine."""

    dataset: str = "dataset"
    """Name of the folder of pictures."""

    started_at_s: float | None = None
    """When the training began, in seconds since 1970; None: no times are told, and equal trainings give equal files."""

    entries: tuple[tuple[str, str], ...] = ()
    """(key, value): further entries, which win over those of the trainer."""


@dataclass(frozen=True)
class FineTuningConfig:
    """All weights of the U-Net are trained, in place of an adapter."""

    weights: Literal["float32", "bfloat16"] = "float32"
    """float32: of master weights, which the model computes with roundings of. bfloat16: of the model's own, each update
    rounded stochastically: a third of the memory."""


@dataclass(frozen=True)
class TrainerConfig:
    base_model: str
    """Path of the SDXL base model: one .safetensors file, or a folder in diffusers' layout."""

    output: str
    """Folder that receives the weights, the pictures, the figures and the checkpoints. Made if missing."""

    cache: str
    """Folder of latents and text embeddings, keyed by content, so that jobs may share it. Made if missing."""

    dataset: DatasetConfig
    train: TrainConfig
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    fine_tuning: FineTuningConfig | None = None
    """Instead of the adapter, which is left alone then."""

    resolution: int = 1024
    """Side in px of the square that no bucket size exceeds in area, and of the sample pictures; a multiple of 32."""

    batch_size: int = 1
    """Pictures a micro-step on each GPU, all of one bucket size."""

    checkpointing: Literal["all", "none"] = "all"
    """Gradient checkpointing of every block of the U-Net (a third slower, a fraction of the memory), or of none."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto takes the GPU when there is one."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """auto takes bfloat16 on a GPU, and float32 on a CPU, where bfloat16 is slow. Of the frozen weights and the
    activations. The adapter and its optimizer are always float32. bfloat16 weights that are fine-tuned
    make auto bfloat16 everywhere."""

    samples: SamplesConfig = field(default_factory=SamplesConfig)
    validation: ValidationConfig | None = None
    """None means off: every picture is trained."""

    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)

    cache_answer: str | None = None
    """A file: the trainer tells which files the cache lacks and waits until this one is there; None: does neither."""

    resume_from: str | None = None
    """A folder `step-NNNNNN` to go on from, exactly; None starts anew."""

    formats: tuple[Format, ...] = ("kohya", "diffusers")
    """kohya writes lora.safetensors, diffusers writes lora_diffusers.safetensors; with fine_tuning neither is asked."""

    header: HeaderConfig = field(default_factory=HeaderConfig)

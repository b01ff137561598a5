"""From the job spec (pydantic, at the edge) to the trainer's configuration (dataclasses, in the core). Nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from jobs.settings import Settings
from jobs.shards import is_sharded
from jobs.spec import JobSpec
from jobs.spec_dataset import MasksSpec, RegularisationSpec
from jobs.spec_training import ValidationSpec
from worker.data.config import DatasetConfig, MasksConfig, RegularisationConfig, ShuffleConfig
from worker.header import header_config
from worker.loop.config import (
    CheckpointsConfig,
    FineTuningConfig,
    LossConfig,
    OptimizerConfig,
    SamplesConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
    ValidationConfig,
)
from worker.lora.config import LoRAConfig, Override, TextLoRAConfig

LOCAL_CHECKPOINTS = 2
"""Kept on the worker, so that one can be uploaded while the next is saved; the spec says how many the bucket keeps."""


@dataclass(frozen=True)
class Places:
    """Where an attempt's files lie on this machine."""

    base_model: Path  # .safetensors file, or folder in diffusers' layout
    dataset: Path  # folder of pictures and captions
    regularisation: Path | None  # another
    init_from: Path | None  # .safetensors file of an adapter
    output: Path  # folder that the trainer fills
    cache: Path  # latents and text embeddings, shared by all jobs of the owner on this worker


def trainer_config(spec: JobSpec, places: Places, settings: Settings) -> TrainerConfig:
    """What the trainer is told to carry out `spec`."""
    training, captions = spec.training, spec.dataset.captions
    return TrainerConfig(
        base_model=str(places.base_model),
        output=str(places.output),
        cache=str(places.cache),
        dataset=DatasetConfig(
            folder=str(places.dataset),
            trigger=spec.dataset.trigger,
            missing_captions=captions.missing,
            caption_dropout=captions.dropout,
            shuffle=ShuffleConfig(captions.keep_tokens, captions.shuffle_orders) if captions.shuffle_tags else None,
            caption_tokens=captions.max_tokens,
            long_captions=captions.too_long,
            flip=spec.dataset.flip,
            latents=spec.dataset.latents,
            bucket_step_px=spec.dataset.bucket_step_px,
            masks=_masks(spec.dataset.masks),
            layout="webdataset" if is_sharded(spec.dataset.uri) else spec.dataset.layout,
            repeats=tuple(spec.dataset.repeats.items()),
            regularisation=_regularisation(spec.dataset.regularisation, places.regularisation),
        ),
        train=TrainConfig(
            steps=training.steps,
            seed=training.seed,
            gradient_accumulation=training.gradient_accumulation,
            optimizer=OptimizerConfig(
                name=training.optimizer.name,
                learning_rate=training.optimizer.learning_rate,
                weight_decay=training.optimizer.weight_decay,
            ),
            lr_schedule=ScheduleConfig(
                name=training.lr_schedule.name,
                warmup_steps=training.lr_schedule.warmup_steps,
                cycles=training.lr_schedule.cycles,
            ),
            max_grad_norm=training.max_grad_norm,
            loss=LossConfig(
                prediction=training.prediction,
                zero_terminal_snr=training.zero_terminal_snr,
                kind=training.loss.name,
                huber_c=training.loss.huber_c,
                min_snr_gamma=training.min_snr_gamma,
                debiased=training.debiased_estimation,
                noise_offset=training.noise_offset,
                min_timestep=training.timesteps.min,
                max_timestep=training.timesteps.max,
            ),
            ema_decay=training.ema.decay if training.ema else None,
            ema_device=training.ema.device if training.ema else "training",
        ),
        lora=_lora_config(spec, places.init_from),
        fine_tuning=spec.fine_tuning and FineTuningConfig(spec.fine_tuning.weights),
        resolution=training.resolution,
        batch_size=training.batch_size,
        checkpointing=spec.memory.checkpointing or "all",
        device=settings.device,
        dtype="bfloat16" if spec.memory.base_dtype == "bfloat16" else "auto",
        checkpoints=CheckpointsConfig(every_n_steps=spec.checkpoints.every_n_steps, keep=LOCAL_CHECKPOINTS),
        samples=SamplesConfig(prompts=spec.samples.prompts, every_n_steps=spec.samples.every_n_steps),
        validation=_validation(training.validation),
        formats=spec.output.formats,
        header=header_config(spec),
    )


def _masks(spec: MasksSpec | None) -> MasksConfig | None:
    return spec and MasksConfig(source=spec.source, background=spec.background)


def _regularisation(spec: RegularisationSpec | None, folder: Path | None) -> RegularisationConfig | None:
    if spec is None or folder is None:
        return None
    return RegularisationConfig(
        folder=str(folder),
        layout="webdataset" if is_sharded(spec.uri) else spec.layout,
        weight=spec.weight,
    )


def _validation(spec: ValidationSpec | None) -> ValidationConfig | None:
    return spec and ValidationConfig(spec.pictures, spec.share, spec.every_n_steps)


def _lora_config(spec: JobSpec, init_from: Path | None) -> LoRAConfig:
    lora, text = spec.lora, spec.lora.text_encoders
    rate = spec.training.optimizer.learning_rate
    return LoRAConfig(
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        patterns=lora.patterns,
        overrides=tuple(Override(each.match, each.rank, each.alpha) for each in lora.overrides),
        dropout=lora.dropout,
        rank_dropout=lora.rank_dropout,
        rslora=lora.rslora,
        dora=lora.dora,
        text_encoders=text and TextLoRAConfig(text.targets, (text.learning_rate or rate) / rate),
        init_from=init_from and str(init_from),
    )

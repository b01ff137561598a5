"""What the files of a training say of it in their headers, beside what worker/lora/metadata.py says of the adapter.

Names, and what they mean, are those of sd-scripts and ModelSpec; what is not known, or not true of loraq, is left out.

Sources: kohya-ss/sd-scripts v0.10.1 (commit 48d368fa), train_network.py; ModelSpec 1.0.1,
https://github.com/Stability-AI/ModelSpec; `ssmd_cover_images`: kohya-ss/sd-webui-additional-networks,
scripts/metadata_editor.py, and AUTOMATIC1111's and Forge's modules/ui_extra_networks.py, which show it on a card.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from worker.data.buckets import Cut, bucket_sizes
from worker.data.dataset import Dataset
from worker.data.kohya_summary import kohya_summary
from worker.loop.config import TrainerConfig
from worker.loop.thumbnail import thumbnail_of
from worker.model.base_model import BaseModel
from worker.model.checkpoint_hashes import CheckpointHashes

_LAST_TIMESTEP = 999


class Header:
    """Begun when a training is: the base model's file is hashed meanwhile.

    Args:
        config: with everything filled in that it left to the base model and to the device.
        base: the base model.
        dataset: as trained, what is held out apart.
        cuts: one for each of `dataset.pictures`, in their order.
        ranks: GPUs that train together.
        now_s: the time, in seconds since 1970.
    """

    def __init__(
        self,
        config: TrainerConfig,
        base: BaseModel,
        dataset: Dataset,
        cuts: Sequence[Cut],
        ranks: int = 1,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._base = base
        self._dataset = kohya_summary(dataset, cuts, config.header.dataset)
        self._pictures = sum(not picture.regularisation for picture in dataset.pictures)
        self._ranks = ranks
        self._now_s = now_s
        self._hashes = CheckpointHashes(base.path)

    def entries(self, last_sample: Path | None, averaged: bool = False) -> dict[str, str]:
        """All of them, for files that are written now.

        Args:
            last_sample: a picture that the adapter has drawn, or None.
            averaged: whether the weights are those of the EMA: a file of its own, with a name of its own.
        """
        entries = (
            _of_training(self._config)
            | self._dataset
            | self._of_epochs()
            | self._of_base()
            | self._of_model(averaged)
            | self._of_time()
            | _of_picture(last_sample)
            | dict(self._config.header.entries)
        )
        if averaged:
            entries["ss_output_name"] += "_ema"
            entries["modelspec.title"] += " (EMA)"
        return entries

    def of_checkpoint(self, last_sample: Path | None) -> dict[str, str]:
        """The same for a whole checkpoint, without `ss_*`, which are of a LoRA's file alone."""
        entries = {key: value for key, value in self.entries(last_sample).items() if not key.startswith("ss")}
        return {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-xl-v1-base",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        } | entries

    def _of_epochs(self) -> dict[str, str]:
        """A training of steps, in epochs: in each, every picture comes up as often as its repeats say."""
        told, pictures = self._config.train, int(self._dataset["ss_num_train_images"])
        batches = math.ceil(pictures / (self._config.batch_size * self._ranks))
        if self._config.dataset.regularisation:
            batches *= 2  # of pictures and of regularisation pictures in turn
        epochs = math.ceil(told.steps * told.gradient_accumulation / batches)
        return {
            "ss_num_batches_per_epoch": str(batches),
            "ss_num_epochs": str(epochs),
            "ss_epoch": str(epochs),
            "ss_total_batch_size": str(self._config.batch_size * self._ranks * told.gradient_accumulation),
        }

    def _of_base(self) -> dict[str, str]:
        name = {"ss_sd_model_name": self._config.header.base_model or self._base.path.name}
        if (hashes := self._hashes.wait()) is None:
            return name
        return name | dict(zip(("ss_sd_model_hash", "ss_new_sd_model_hash"), hashes, strict=True))

    def _of_model(self, averaged: bool) -> dict[str, str]:
        config, side = self._config, self._config.resolution
        loss, trigger = config.train.loss, config.dataset.trigger
        base = config.header.base_model or self._base.path.name
        what = "U-Net of" if config.fine_tuning else "LoRA for"
        entries = {
            "ss_output_name": config.header.name,
            "modelspec.title": config.header.title,
            "modelspec.description": (
                f"{what} SDXL, trained by loraq on {base}: {self._pictures} pictures, {config.train.steps} steps, "
                f"{side} px{', averaged weights' if averaged else ''}."
            ),
            "modelspec.prediction_type": "v" if loss.prediction == "v_prediction" else "epsilon",
            "modelspec.resolution": f"{side}x{side}",
            "loraq_weights": "ema" if averaged else "last",
        }
        if trigger:
            entries["modelspec.trigger_phrase"] = trigger
            entries["modelspec.usage_hint"] = f"Write in the prompt: {trigger}"
        if (loss.min_timestep, loss.max_timestep) != (0, _LAST_TIMESTEP):
            entries["modelspec.timestep_range"] = f"{loss.min_timestep},{loss.max_timestep}"
        return entries

    def _of_time(self) -> dict[str, str]:
        """Nothing, unless the caller said when the training began: then equal weights give equal files."""
        if (started_at_s := self._config.header.started_at_s) is None:
            return {}
        finished_at_s = self._now_s()
        return {
            "ss_training_started_at": str(started_at_s),
            "ss_training_finished_at": str(finished_at_s),
            "modelspec.date": datetime.fromtimestamp(int(finished_at_s), UTC).isoformat(),
        }


def _of_training(config: TrainerConfig) -> dict[str, str]:
    """What the training was told. As sd-scripts has it, "None" is what is off."""
    told, side, dataset = config.train, config.resolution, config.dataset
    loss, text = told.loss, config.lora.text_encoders
    sides = [side for size in bucket_sizes(side, dataset.bucket_step_px) for side in size]
    rate = told.optimizer.learning_rate
    entries: dict[str, object] = {
        "ss_steps": told.steps,
        "ss_max_train_steps": told.steps,
        "ss_seed": told.seed,
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": text and rate * text.learning_rate_scale,
        "ss_optimizer": told.optimizer.name,
        "ss_lr_scheduler": told.lr_schedule.name,
        "ss_lr_warmup_steps": told.lr_schedule.warmup_steps,
        "ss_max_grad_norm": told.max_grad_norm or 0.0,
        "ss_loss_type": "huber" if loss.kind == "huber" else "l2",
        "ss_min_snr_gamma": loss.min_snr_gamma,
        "ss_debiased_estimation": loss.debiased,
        "ss_noise_offset": loss.noise_offset or None,
        "ss_zero_terminal_snr": bool(loss.zero_terminal_snr),
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": told.gradient_accumulation,
        "ss_gradient_checkpointing": config.checkpointing == "all",
        "ss_mixed_precision": {"bfloat16": "bf16", "float32": "no"}[config.dtype],
        "ss_full_fp16": False,
        "ss_clip_skip": None,
        "ss_max_token_length": dataset.caption_tokens if dataset.caption_tokens > 75 else None,
        "ss_cache_latents": True,
        "ss_caption_dropout_rate": dataset.caption_dropout,
        "ss_shuffle_caption": dataset.shuffle is not None,
        "ss_keep_tokens": dataset.shuffle.keep_tokens if dataset.shuffle else 0,
        "ss_flip_aug": dataset.flip,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": False,
        "ss_min_bucket_reso": min(sides),
        "ss_max_bucket_reso": max(sides),
    }
    if loss.kind == "huber":
        entries |= {"ss_huber_schedule": "constant", "ss_huber_c": loss.huber_c, "ss_huber_scale": 1.0}
    if dataset.regularisation:
        entries["ss_prior_loss_weight"] = dataset.regularisation.weight
    if config.validation:
        entries["ss_validate_every_n_steps"] = config.validation.every_n_steps
    return {key: str(value) for key, value in entries.items()}


def _of_picture(sample: Path | None) -> dict[str, str]:
    """A thumbnail, for ModelSpec's readers and for the cards of AUTOMATIC1111 and Forge."""
    if sample is None or (jpeg := thumbnail_of(sample)) is None:
        return {}
    return {
        "modelspec.thumbnail": f"data:image/jpeg;base64,{jpeg}",
        "ssmd_cover_images": json.dumps([jpeg]),
    }

"""What a finished training leaves: the adapter in every format, and the loss curve."""

from pathlib import Path

from worker.loop.config import TrainerConfig
from worker.loop.ema import EMA
from worker.loop.metrics import Metrics
from worker.lora.export import save_diffusers, save_kohya
from worker.lora.inject import LoRA


def write_outputs(output: Path, config: TrainerConfig, lora: LoRA, ema: EMA | None, metrics: Metrics) -> list[Path]:
    """Write `lora.safetensors`, `lora_diffusers.safetensors` (as formats say) and `loss.png`; list all files there are.

    With an EMA, the averaged weights lie beside the last: `lora_ema.safetensors`, `lora_diffusers_ema.safetensors`.
    """
    files = _write_adapter(output, "", config, lora)
    if ema:
        with ema.applied(lora):
            files += _write_adapter(output, "_ema", config, lora)
    metrics.plot(output / "loss.png")
    return [*files, output / "loss.png", metrics.path, output / "dataset.json", *sorted(output.glob("samples/*.png"))]


def _write_adapter(output: Path, suffix: str, config: TrainerConfig, lora: LoRA) -> list[Path]:
    files: list[Path] = []
    if "kohya" in config.formats:
        files.append(output / f"lora{suffix}.safetensors")
        save_kohya(lora, files[-1], kohya_metadata(config))
    if "diffusers" in config.formats:
        files.append(output / f"lora_diffusers{suffix}.safetensors")
        save_diffusers(lora, files[-1])
    return files


def kohya_metadata(config: TrainerConfig) -> dict[str, str]:
    """What the training was told, by the names of sd-scripts' header (train_network.py); all values are strings."""
    told, side = config.train, config.resolution
    entries: dict[str, object] = {
        "ss_sd_model_name": Path(config.base_model).name,
        "ss_steps": told.steps,
        "ss_max_train_steps": told.steps,
        "ss_seed": told.seed,
        "ss_learning_rate": told.optimizer.learning_rate,
        "ss_unet_lr": told.optimizer.learning_rate,
        "ss_optimizer": told.optimizer.name,
        "ss_lr_scheduler": told.lr_schedule.name,
        "ss_lr_warmup_steps": told.lr_schedule.warmup_steps,
        "ss_max_grad_norm": told.max_grad_norm,
        "ss_min_snr_gamma": told.loss.min_snr_gamma,
        "ss_zero_terminal_snr": bool(told.loss.zero_terminal_snr),
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": told.gradient_accumulation,
        "ss_gradient_checkpointing": config.checkpointing == "all",
        "ss_caption_dropout_rate": config.dataset.caption_dropout,
        "ss_cache_latents": True,
        "ss_resolution": f"({side}, {side})",
        "ss_mixed_precision": {"bfloat16": "bf16", "float32": "no"}[config.dtype],
        "modelspec.prediction_type": "v" if told.loss.prediction == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{side}x{side}",
    }
    if config.dataset.trigger:
        entries["modelspec.trigger_phrase"] = config.dataset.trigger
    return {key: str(value) for key, value in entries.items()}

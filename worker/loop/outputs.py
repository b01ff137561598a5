"""What a finished training leaves: the adapter in every format, or the checkpoint, and the loss curve."""

from pathlib import Path

from worker.fine_tuning.export import save_checkpoint
from worker.loop.config import LossConfig, TrainerConfig
from worker.loop.ema import EMA
from worker.loop.header import Header
from worker.loop.metrics import Metrics
from worker.loop.trained import Trained
from worker.lora.export import save_diffusers, save_kohya
from worker.lora.inject import LoRA
from worker.model.base_model import BaseModel


def write_outputs(
    output: Path,
    config: TrainerConfig,
    base: BaseModel,
    trained: Trained,
    ema: EMA | None,
    metrics: Metrics,
    header: Header,
) -> list[Path]:
    """Write `lora.safetensors`, `lora_diffusers.safetensors` (as formats say) and `loss.png`; list all files there are.

    With an EMA, the averaged weights lie beside the last: `lora_ema.safetensors`, `lora_diffusers_ema.safetensors`.
    Fine-tuning leaves `model.safetensors` instead, a whole checkpoint.
    """
    samples = sorted(output.glob("samples/*.png"))
    last = next(iter(output.glob(f"samples/step-{config.train.steps:06d}-0.png")), None)
    if isinstance(trained, LoRA):
        files = _write_adapter(output, "", config, trained, header.entries(last))
        if ema:
            with ema.applied(trained):
                files += _write_adapter(output, "_ema", config, trained, header.entries(last, averaged=True))
    else:
        files = [output / "model.safetensors"]
        marks = _marks(config.train.loss)
        save_checkpoint(base, trained.state_dict(), files[0], header.of_checkpoint(last), marks)
    metrics.plot(output / "loss.png")
    return [*files, output / "loss.png", metrics.path, output / "dataset.json", *samples]


def _write_adapter(output: Path, suffix: str, config: TrainerConfig, lora: LoRA, entries: dict[str, str]) -> list[Path]:
    files: list[Path] = []
    if "kohya" in config.formats:
        files.append(output / f"lora{suffix}.safetensors")
        save_kohya(lora, files[-1], entries)
    if "diffusers" in config.formats:
        files.append(output / f"lora_diffusers{suffix}.safetensors")
        save_diffusers(lora, files[-1], entries)
    return files


def _marks(loss: LossConfig) -> tuple[str, ...]:
    """What a checkpoint says of what it predicts, where it is not the noise."""
    return ("v_pred",) * (loss.prediction == "v_prediction") + ("ztsnr",) * bool(loss.zero_terminal_snr)

"""What a finished training leaves: the adapter in every format, and the loss curve."""

from pathlib import Path

from worker.loop.config import TrainerConfig
from worker.loop.ema import EMA
from worker.loop.header import Header
from worker.loop.metrics import Metrics
from worker.lora.export import save_diffusers, save_kohya
from worker.lora.inject import LoRA


def write_outputs(
    output: Path, config: TrainerConfig, lora: LoRA, ema: EMA | None, metrics: Metrics, header: Header
) -> list[Path]:
    """Write `lora.safetensors`, `lora_diffusers.safetensors` (as formats say) and `loss.png`; list all files there are.

    With an EMA, the averaged weights lie beside the last: `lora_ema.safetensors`, `lora_diffusers_ema.safetensors`.
    """
    samples = sorted(output.glob("samples/*.png"))
    last = next(iter(output.glob(f"samples/step-{config.train.steps:06d}-0.png")), None)
    files = _write_adapter(output, "", config, lora, header.entries(last))
    if ema:
        with ema.applied(lora):
            files += _write_adapter(output, "_ema", config, lora, header.entries(last, averaged=True))
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

"""What makes a checkpoint one of this training and of no other: a training that goes on from it was told the same."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.data.dataset import Dataset
from worker.loop.config import TrainerConfig
from worker.lora.config import LoRAConfig
from worker.model.base_model import BaseModel
from worker.model.stored_tensors import content_sha256, read_header


def _lora_identity(lora: LoRAConfig) -> dict[str, Any]:
    """What was asked of the adapter; of the file that it began with, the content instead of the place."""
    begun_with = lora.init_from and content_sha256(read_header(Path(lora.init_from))[0].values())
    return asdict(lora) | {"init_from": begun_with}


def identity_of(config: TrainerConfig, base: BaseModel, dataset: Dataset, ranks: int) -> dict[str, Any]:
    """What must not change between a checkpoint and the training that goes on from it. The number of steps may, and
    that of ranks, if all of them together train as many pictures in a micro-step as before.
    """
    held_out = [(picture.sha256, picture.caption) for picture in dataset.held_out]
    content = [(p.sha256, p.mask and p.mask.sha256, p.caption, p.repeats, p.regularisation) for p in dataset.pictures]
    told = asdict(config.train)
    del told["steps"]
    options = asdict(config.dataset)
    del options["folder"]  # where the pictures lie on this machine; what they are is in their digest
    if config.dataset.regularisation:
        del options["regularisation"]["folder"]
    return (
        {f"dataset.{name}": value for name, value in options.items()}
        | told
        | {
            "lora": _lora_identity(config.lora),
            "batch_size * gpus": config.batch_size * ranks,
            "resolution": config.resolution,
            "dtype": config.dtype,
            "dataset": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "base_model": [base.vae_sha256, base.text_encoders_sha256],
        }
        | ({"held out": held_out} if held_out else {})
        | ({"fine_tuning": asdict(config.fine_tuning)} if config.fine_tuning else {})
    )

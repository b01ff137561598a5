"""From configuration to models on the device: the base frozen, and on it what is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from worker.errors import BaseModelInvalid
from worker.fine_tuning.weights import FullWeights
from worker.loop.config import TrainerConfig
from worker.loop.trained import Trained
from worker.lora.inject import LoRA, inject
from worker.lora.start import weights_from
from worker.memory.checkpoint import enable_checkpointing
from worker.model.base_model import BaseModel
from worker.model.unet import UNet
from worker.model.weights import load_unet

if TYPE_CHECKING:
    from worker.model.text_encoders import TextEncoders

log = logging.getLogger(__name__)


def check_trained(base: BaseModel, config: TrainerConfig) -> None:
    """Put the adapter on models without weights, within milliseconds, to find all that could be wrong with it.

    Raises:
        LoRAInvalid: it does not fit the base model.
        BaseModelInvalid: a fine-tuned checkpoint would go on to say what is no longer true of it.
    """
    if config.fine_tuning:
        loss = config.train.loss
        no_longer_v = base.prediction_type == "v_prediction" and loss.prediction == "epsilon"
        if no_longer_v or (base.zero_terminal_snr and not loss.zero_terminal_snr):
            raise BaseModelInvalid(
                f"{base.path.name} says that it predicts v{', from pure noise' * base.zero_terminal_snr}; the "
                f"checkpoint would go on to say so: leave training.prediction and training.zero_terminal_snr out."
            )
        return
    with torch.device("meta"):
        skeleton = UNet(base.unet_config).requires_grad_(False)
    encoders = None
    if config.lora.text_encoders:
        from worker.model.text_encoders import skeleton_text_encoders  # imports transformers: needed only here

        encoders = skeleton_text_encoders(base)
    _adapt(skeleton, encoders, config)


def load(base: BaseModel, config: TrainerConfig, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Trained]:
    """Base to the device and frozen, then what is trained on it; only then is anything asked what is trainable.

    Returns what predicts, and what of it is trained.
    """
    unet = load_unet(base, device, dtype)
    enable_checkpointing(unet, config.checkpointing)
    if config.fine_tuning:
        masters = None
        if config.fine_tuning.weights == "float32" and dtype != torch.float32:
            masters = dict(load_unet(base, device, torch.float32).named_parameters())
        full = FullWeights(unet, masters)
        log.info("Train all %d weights of the U-Net.", full.parameter_count())
        return unet, full
    encoders = None
    if config.lora.text_encoders:
        from worker.model.text_encoders import load_text_encoders

        encoders = load_text_encoders(base, device, dtype)
    lora = _adapt(unet, encoders, config)
    log.info("Put %d trainable weights on %d modules.", lora.parameter_count(), len(lora.modules))
    if encoders is None:
        return unet, lora
    from worker.model.from_captions import FromCaptions

    return FromCaptions(unet, encoders), lora


def _adapt(unet: UNet, encoders: TextEncoders | None, config: TrainerConfig) -> LoRA:
    """The adapter on frozen models, as it begins."""
    lora = inject(unet, config.lora, config.train.seed, encoders and encoders.towers)
    if config.lora.init_from:
        lora.load_state_dict(weights_from(Path(config.lora.init_from), lora))
    return lora

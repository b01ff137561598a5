"""One training from its configuration to its files, phase by phase. Says how it goes through `emit`."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from worker.data.batches import Batches, Example, Regularisation, View
from worker.data.buckets import Cut, bucket_sizes, cut_for
from worker.data.cache import Cache
from worker.data.caption_length import check_lengths
from worker.data.dataset import Dataset, read_dataset
from worker.data.encoding import TextEmbedding, encode_captions, encode_pictures
from worker.data.examples import caption_orders, make_examples, make_held_out, shots_of, view_of
from worker.data.held_out import hold_out
from worker.data.report import dataset_report, in_short, write_report
from worker.errors import GpusMissing
from worker.loop.config import TrainerConfig
from worker.loop.loss import as_the_base_says, noise_schedule
from worker.loop.metrics import Metrics
from worker.loop.optim import evaluated
from worker.loop.outputs import write_outputs
from worker.loop.preview import sample
from worker.loop.state import load_state, prune, save_state
from worker.loop.train import TrainState, train
from worker.loop.validation import Validation, validation_result
from worker.lora.config import LoRAConfig
from worker.lora.inject import LoRA, inject
from worker.lora.start import weights_from
from worker.memory.checkpoint import enable_checkpointing
from worker.model.stored_tensors import content_sha256, read_header
from worker.model.unet import UNet
from worker.model.vae import load_vae
from worker.model.weights import BaseModel, load_unet, open_base_model

log = logging.getLogger(__name__)

Emit = Callable[..., None]  # emit("step", step=1, ...) reports one fact of the contract in worker.trainer
Captions = dict[str, TextEmbedding]  # every caption and prompt, and the empty one


class Stopped(Exception):
    """The training was told to stop before this process had trained a step."""


class Training:
    """Everything that the phases hand on to each other.

    Args:
        config: what to train.
        emit: takes the name and the fields of each fact.
        stop_requested: asked between pictures and between steps.
    """

    def __init__(self, config: TrainerConfig, emit: Emit, stop_requested: Callable[[], bool]) -> None:
        self.device = _device(config)
        if config.dtype == "auto":
            config = replace(config, dtype="bfloat16" if self.device.type == "cuda" else "float32")
        self.config = config
        self.emit = emit
        self.stop_requested = stop_requested
        self.dtype = getattr(torch, config.dtype)
        self.output = Path(config.output)

    def run(self) -> None:
        """Train. The last fact emitted is `finished`, or `stopped` after a checkpoint.

        Raises:
            TrainerError: a person can put it right.
            Stopped: before the first step, so that there is nothing to keep.
        """
        self.emit("phase", name="reading")
        base, dataset, cuts = self._read()
        self.emit("phase", name="encoding")
        batches, captions, validation = self._encode(base, dataset, cuts)
        self.emit("phase", name="loading")
        unet, lora = self._load(base)
        self.emit("phase", name="training")
        self._train(base, dataset, batches, captions, validation, unet, lora)

    def _read(self) -> tuple[BaseModel, Dataset, list[Cut]]:
        """Look at everything before anything expensive happens, so that a mistake is told within seconds."""
        base = open_base_model(Path(self.config.base_model))
        loss = as_the_base_says(self.config.train.loss, base)
        self.config = replace(self.config, train=replace(self.config.train, loss=loss))
        with torch.device("meta"):
            skeleton = UNet(base.unet_config).requires_grad_(False)
        lora = inject(skeleton, self.config.lora, self.config.train.seed)
        if self.config.lora.init_from:
            weights_from(Path(self.config.lora.init_from), lora)
        dataset = read_dataset(self.config.dataset)
        too_long = check_lengths(dataset, self.config.samples.prompts, self.config.dataset)
        if (validation := self.config.validation) is not None:
            dataset = hold_out(dataset, validation.pictures, validation.share)
        sizes = bucket_sizes(self.config.resolution, self.config.dataset.bucket_step_px)
        cuts = [cut_for(picture.size_px, sizes) for picture in (*dataset.pictures, *dataset.held_out)]
        report = dataset_report(dataset, cuts)
        write_report(report, self.output / "dataset.json")
        self.emit("dataset", **in_short(report))
        for message in (*report.warnings, *too_long):
            self.emit("warning", message=message)
        return base, dataset, cuts

    def _encode(
        self, base: BaseModel, dataset: Dataset, cuts: Sequence[Cut]
    ) -> tuple[Batches, Captions, Validation | None]:
        """Both encoders are gone from the device when this returns."""
        cache, options = Cache(Path(self.config.cache)), self.config.dataset
        orders = caption_orders(dataset, options)
        of_pictures = (*(text for each in orders for text in each), *(picture.caption for picture in dataset.held_out))
        texts = list(dict.fromkeys(["", *of_pictures, *self.config.samples.prompts]))
        shots = shots_of(dataset, cuts, options.flip)
        total = len(texts) + len(shots)
        captions: Captions = {}
        embeddings = encode_captions(texts, cache, base, self.device, self.dtype, options.caption_tokens)
        for text, embedding in zip(texts, embeddings, strict=True):
            captions[text] = embedding
            self._encoded(len(captions), total)
        views: list[View] = []
        for shot, latents in zip(shots, encode_pictures(shots, cache, base, self.device, self.dtype), strict=True):
            views.append(view_of(shot, latents, options))
            self._encoded(len(texts) + len(views), total)
        examples = make_examples(dataset, views, orders, captions)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what the encoders left, for the U-Net
        validation = self._validation(dataset, make_held_out(dataset, views, captions))
        return self._batches(dataset, examples, captions[""]), captions, validation

    def _batches(self, dataset: Dataset, examples: list[Example], empty: TextEmbedding) -> Batches:
        options, count = self.config.dataset, sum(not picture.regularisation for picture in dataset.pictures)
        regularisation = options.regularisation and Regularisation(examples[count:], options.regularisation.weight)
        return Batches(
            examples[:count],
            empty,
            self.config.batch_size,
            self.config.train.seed,
            options.caption_dropout,
            regularisation,
        )

    def _validation(self, dataset: Dataset, examples: list[Example]) -> Validation | None:
        digests = [picture.sha256 for picture in dataset.held_out]
        options = self.config.validation
        return options and Validation(examples, digests, options.every_n_steps, self.config.train.loss)

    def _encoded(self, done: int, total: int) -> None:
        self.emit("encoded", done=done, total=total)
        if self.stop_requested():
            raise Stopped

    def _load(self, base: BaseModel) -> tuple[UNet, LoRA]:
        """Base to the device and frozen, then the adapter on it; only then is anything asked what is trainable."""
        unet = load_unet(base, self.device, self.dtype)
        lora = inject(unet, self.config.lora, self.config.train.seed)
        if self.config.lora.init_from:
            lora.load_state_dict(weights_from(Path(self.config.lora.init_from), lora))
        enable_checkpointing(unet, self.config.checkpointing)
        log.info("Put %d trainable weights on %d modules.", lora.parameter_count(), len(lora.modules))
        return unet, lora

    def _train(
        self,
        base: BaseModel,
        dataset: Dataset,
        batches: Batches,
        captions: Captions,
        validation: Validation | None,
        unet: UNet,
        lora: LoRA,
    ) -> None:
        config, checkpoints = self.config, self.output / "checkpoints"
        state = TrainState.begin(lora, config.train)
        identity = _identity(config, base, dataset)
        resume_from = Path(config.resume_from) if config.resume_from else None
        if resume_from:
            load_state(resume_from, lora, state, identity)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.stop_requested():
            raise Stopped
        with Metrics(self.output / "metrics.jsonl", resume_from and resume_from / "metrics.jsonl") as metrics:
            # Before the first step, or what an attempt that was stopped has left out.
            self._validate(validation, metrics, unet, lora, state)
            for result in train(unet, lora, batches, config.train, state):
                metrics.add(result)
                self.emit("step", steps=config.train.steps, **asdict(result))
                self._validate(validation, metrics, unet, lora, state)
                last = result.step == config.train.steps
                stopping = self.stop_requested() and not last
                if (
                    config.samples.prompts
                    and (last or _due(result.step, config.samples.every_n_steps))
                    and not stopping
                ):
                    with evaluated(state.optimizer):
                        self._sample(base, unet, captions, result.step)
                if stopping or _due(result.step, config.checkpoints.every_n_steps):
                    folder = save_state(checkpoints, lora, state, identity, metrics.path)
                    prune(checkpoints, config.checkpoints.keep)
                    self.emit("checkpoint", step=result.step, path=self._relative(folder))
                    if stopping:
                        self.emit("stopped", step=result.step, path=self._relative(folder))
                        return
            self.emit("phase", name="exporting")
            with evaluated(state.optimizer):
                files = write_outputs(self.output, config, lora, state.ema, metrics)
            first, final = metrics.ends()
            names = [self._relative(file) for file in files]
            self.emit("finished", steps=state.step, loss_first=first, loss_last=final, files=names)

    def _validate(
        self, validation: Validation | None, metrics: Metrics, unet: UNet, lora: LoRA, state: TrainState
    ) -> None:
        """Take the loss of the pictures held out, if it is wanted after this step and was not taken yet."""
        if validation is None or state.step in metrics.validations:
            return
        if not validation.due(state.step, self.config.train.steps):
            return
        with state.ema.applied(lora) if state.ema else evaluated(state.optimizer):
            losses = validation.losses(unet, self.device, self.stop_requested)
        if losses is not None:
            result = validation_result(state.step, losses, validation.timesteps, ema=state.ema is not None)
            metrics.add_validation(result)
            self.emit("validation", **asdict(result))

    def _sample(self, base: BaseModel, unet: UNet, captions: Captions, step: int) -> None:
        """The VAE is loaded for the moment only: between samples its memory belongs to training."""
        options, folder = self.config.samples, self.output / "samples"
        folder.mkdir(exist_ok=True)
        vae = load_vae(base, self.device, self.dtype)
        schedule = noise_schedule(self.config.train.loss, self.device)
        for number, prompt in enumerate(options.prompts):
            image = sample(
                unet,
                vae,
                captions[prompt],
                captions[""],
                side_px=self.config.resolution,
                steps=options.sampler_steps,
                guidance=options.guidance,
                seed=self.config.train.seed,
                schedule=schedule,
            )
            path = folder / f"step-{step:06d}-{number}.png"
            image.save(path)
            self.emit("sample", step=step, path=self._relative(path))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.output).as_posix()


def _device(config: TrainerConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():  # to train without would take weeks
        raise GpusMissing(
            f"This worker has a GPU, but torch {torch.__version__} finds no CUDA device: install a torch with CUDA "
            "and a driver that fits it, or set LORAQ_DEVICE=cpu on the worker."
        )
    return torch.device(config.device)


def _due(step: int, every_n_steps: int | None) -> bool:
    return every_n_steps is not None and step % every_n_steps == 0


def _lora_identity(lora: LoRAConfig) -> dict[str, Any]:
    """What was asked of the adapter; of the file that it began with, the content instead of the place."""
    begun_with = lora.init_from and content_sha256(read_header(Path(lora.init_from))[0].values())
    return asdict(lora) | {"init_from": begun_with}


def _identity(config: TrainerConfig, base: BaseModel, dataset: Dataset) -> dict[str, Any]:
    """What must not change between a checkpoint and the training that goes on from it. The number of steps may."""
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
            "batch_size": config.batch_size,
            "resolution": config.resolution,
            "dtype": config.dtype,
            "dataset": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "base_model": [base.vae_sha256, base.text_encoders_sha256],
        }
        | ({"held out": held_out} if held_out else {})
    )

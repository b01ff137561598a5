"""One training from its configuration to its files, phase by phase. Says how it goes through `emit`."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from worker.data.buckets import Cut, bucket_sizes, cut_for
from worker.data.caption_length import check_lengths
from worker.data.dataset import Dataset, read_dataset
from worker.data.held_out import hold_out
from worker.data.report import dataset_report, in_short, write_report
from worker.errors import ResumeRefused
from worker.loop.config import TrainerConfig
from worker.loop.device import device_of
from worker.loop.due import check_same, due_after
from worker.loop.encoding import Captions, Encoded, Encoding
from worker.loop.header import Header
from worker.loop.identity import identity_of
from worker.loop.loading import check_trained, load
from worker.loop.loss import as_the_base_says, noise_schedule
from worker.loop.metrics import Metrics
from worker.loop.optim import evaluated
from worker.loop.outputs import write_outputs
from worker.loop.outside import Emit, Stopped
from worker.loop.preview import sample
from worker.loop.ranks import Ranks
from worker.loop.state import load_state, prune, save_state
from worker.loop.train import StepResult, TrainState, train
from worker.loop.trained import Trained
from worker.loop.validation import Validation, validation_result
from worker.model.vae import load_vae
from worker.model.weights import BaseModel, open_base_model


class Training:
    """Everything that the phases hand on to each other.

    Args:
        config: what to train.
        emit: takes the name and the fields of each fact.
        stop_requested: asked between pictures and between steps.
        ranks: who trains along, joined; None is alone.
    """

    def __init__(
        self, config: TrainerConfig, emit: Emit, stop_requested: Callable[[], bool], ranks: Ranks | None = None
    ) -> None:
        self.device = device_of(config)
        if config.dtype == "auto":
            rounded = config.fine_tuning is not None and config.fine_tuning.weights == "bfloat16"
            config = replace(config, dtype="bfloat16" if self.device.type == "cuda" or rounded else "float32")
        self.config = config
        self.emit = emit
        self.stop_requested = stop_requested
        self.ranks = ranks or Ranks()
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
        encoding = Encoding(self.config, base, self.device, self.dtype, self.emit, self.stop_requested, self.ranks)
        encoded = encoding.run(dataset, cuts)
        self.emit("phase", name="loading")
        unet, trained = load(base, self.config, self.device, self.dtype)
        self.emit("phase", name="training")
        self._train(base, dataset, encoded, unet, trained)

    def _read(self) -> tuple[BaseModel, Dataset, list[Cut]]:
        """Look at everything before anything expensive happens, so that a mistake is told within seconds."""
        base = open_base_model(Path(self.config.base_model))
        loss = as_the_base_says(self.config.train.loss, base)
        self.config = replace(self.config, train=replace(self.config.train, loss=loss))
        check_trained(base, self.config)
        dataset = read_dataset(self.config.dataset)
        too_long = check_lengths(dataset, self.config.samples.prompts, self.config.dataset)
        if (validation := self.config.validation) is not None:
            dataset = hold_out(dataset, validation.pictures, validation.share)
        sizes = bucket_sizes(self.config.resolution, self.config.dataset.bucket_step_px)
        cuts = [cut_for(picture.size_px, sizes) for picture in (*dataset.pictures, *dataset.held_out)]
        report = dataset_report(dataset, cuts)
        if self.ranks.first:
            write_report(report, self.output / "dataset.json")
        self.emit("dataset", **in_short(report))
        for message in (*report.warnings, *too_long):
            self.emit("warning", message=message)
        if self.ranks.first:
            self.header = Header(self.config, base, dataset, cuts, self.ranks.size)
        return base, dataset, cuts

    def _train(
        self,
        base: BaseModel,
        dataset: Dataset,
        encoded: Encoded,
        unet: nn.Module,
        trained: Trained,
    ) -> None:
        config, checkpoints = self.config, self.output / "checkpoints"
        state = TrainState.begin(trained, config.train)
        identity = identity_of(config, base, dataset, self.ranks.size)
        resume_from = Path(config.resume_from) if config.resume_from else None
        if resume_from:
            load_state(resume_from, trained, state, identity)
            if state.step > config.train.steps:
                raise ResumeRefused(
                    f"{resume_from.name} lies behind the {config.train.steps} steps of this training: ask for at least "
                    f"{state.step}, or go on from an older checkpoint."
                )
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.ranks.any(self.stop_requested()):
            raise Stopped
        check_same(self.ranks, trained, state)
        results = train(unet, trained, encoded.batches, config.train, state, self.ranks)
        if not self.ranks.first:
            self._follow(results, trained, state)
            return
        with Metrics(self.output / "metrics.jsonl", resume_from and resume_from / "metrics.jsonl") as metrics:
            # Before the first step, or what an attempt that was stopped has left out. The other ranks wait.
            self._validate(encoded.validation, metrics, unet, trained, state)
            for result in results:
                metrics.add(result)
                self.emit("step", steps=config.train.steps, **asdict(result))
                self._validate(encoded.validation, metrics, unet, trained, state)
                due = due_after(result, config, self.ranks, self.stop_requested, trained, state)
                if due.sample:
                    with evaluated(state.optimizer, trained):
                        self._sample(base, unet, encoded.captions, result.step)
                if due.checkpoint:
                    folder = save_state(checkpoints, trained, state, identity, metrics.path)
                    prune(checkpoints, config.checkpoints.keep)
                    self.emit("checkpoint", step=result.step, path=self._relative(folder))
                    if due.stop:
                        self.emit("stopped", step=result.step, path=self._relative(folder))
                        return
            self.emit("phase", name="exporting")
            with evaluated(state.optimizer, trained):
                files = write_outputs(self.output, config, base, trained, state.ema, metrics, self.header)
            first, final = metrics.ends()
            names = [self._relative(file) for file in files]
            self.emit("finished", steps=state.step, loss_first=first, loss_last=final, files=names)

    def _validate(
        self, validation: Validation | None, metrics: Metrics, unet: nn.Module, trained: Trained, state: TrainState
    ) -> None:
        """Take the loss of the pictures held out, if it is wanted after this step and was not taken yet."""
        if validation is None or state.step in metrics.validations:
            return
        if not validation.due(state.step, self.config.train.steps):
            return
        with state.ema.applied(trained) if state.ema else evaluated(state.optimizer, trained):
            losses = validation.losses(unet, self.device, self.stop_requested)
        if losses is not None:
            result = validation_result(state.step, losses, validation.timesteps, ema=state.ema is not None)
            metrics.add_validation(result)
            self.emit("validation", **asdict(result))

    def _follow(self, results: Iterator[StepResult], trained: Trained, state: TrainState) -> None:
        """What every rank but the first does between steps: agree on what is due."""
        for result in results:
            if due_after(result, self.config, self.ranks, self.stop_requested, trained, state).stop:
                return

    def _sample(self, base: BaseModel, unet: nn.Module, captions: Captions, step: int) -> None:
        """The VAE is loaded for the moment only: between samples its memory belongs to training."""
        options, vae = self.config.samples, load_vae(base, self.device, self.dtype)
        schedule = noise_schedule(self.config.train.loss, self.device)
        side_px, seed = self.config.resolution, self.config.train.seed
        for number, prompt in enumerate(options.prompts):
            pair = captions[prompt], captions[""]
            image = sample(unet, vae, *pair, side_px, options.sampler_steps, options.guidance, seed, schedule)
            path = self.output / "samples" / f"step-{step:06d}-{number}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            self.emit("sample", step=step, path=self._relative(path))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.output).as_posix()

"""Does a LoRA or a fine-tuning lose anything in BF16? The drawing model's lesson in several precisions.

    python -m benchmarks.precision [--steps 300] [--seeds 0 1 2] [--rates 1e-4 2e-3] [--minutes 2] > results.jsonl
    python -m benchmarks.precision_figures results.jsonl --plot curve.png

The trainings are loraq's own: its adapter, its batches, its loop. Each arm starts from the same weights, and sees the
same pictures, noise and timesteps as the others of its seed; the base model's file is BF16, so it is the same in both.
What was trained is measured in one FP32 U-Net, however it was trained: what differs is the weights alone. Prints one
JSON line an arm and point in the training, as they come; processes share the devices, one a rate and seed.
"""

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.drawing.artist import Artist
from benchmarks.drawing.checker import rates
from benchmarks.drawing.exam import questions
from benchmarks.drawing.pictures import write_dataset
from benchmarks.precision_arms import ARMS, begin, changes, reference_of, rows
from worker.data.batches import Batch, Batches, Example, Regularisation
from worker.data.buckets import bucket_sizes, cut_for
from worker.data.cache import Cache
from worker.data.config import DatasetConfig
from worker.data.dataset import read_dataset
from worker.data.encoding import Shot, TextEmbedding, encode_captions, encode_pictures
from worker.data.examples import view_of
from worker.fine_tuning.weights import FullWeights
from worker.loop.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from worker.loop.loss import noise_schedule
from worker.loop.step import diffusion_loss
from worker.loop.train import train
from worker.loop.validation import fixed_timesteps
from worker.lora.inject import LoRA
from worker.model.unet import UNet
from worker.model.weights import load_unet, open_base_model
from worker.seeds import generator

ROOT = Path(__file__).parents[1]
BASE = ROOT / "tests" / "assets" / "drawing-sdxl.safetensors"
EXAMPLES = ROOT / "jobs" / "examples"
RESOLUTION, BATCH_SIZE, CAPTION_DROPOUT, WARMUP_STEPS = 128, 4, 0.05, 10  # these and below: jobs/examples/stars.yaml's
LOSS = LossConfig(prediction="epsilon", min_snr_gamma=5.0)
HELD_OUT = 14  # stars that no arm is shown
OTHER_DRAWS = 1000  # added to a training's seed, not to its adapter's


@dataclass(frozen=True)
class Task:
    """One rate and seed, all arms of it."""

    learning_rate: float
    seed: int
    arms: tuple[str, ...]
    steps: int
    points: int  # measured so often in a training
    drawn: int  # pictures of stars at the end; 0 means none
    device: str  # where there are several GPUs, one each task in turn: cuda:0, cuda:1, cuda:0, ...
    deadline: float  # time.time()


@dataclass(frozen=True)
class Point:
    """What an arm has come to after so many steps."""

    arm: str
    learning_rate: float
    seed: int
    step: int
    validation_loss: float
    distance: float | None  # |added - FP32's| / |FP32's|, over the U-Net's weights; None: FP32 did not come so far
    moved_a: float  # share of lora_A's entries, or of the whole U-Net's, that a step changed: mean since the last point
    moved_b: float | None  # of lora_B's
    stars: float | None  # share of drawn stars that are right; None: not drawn
    seconds: float  # of the arm so far, measuring included


@torch.no_grad()
def held_out_loss(unet: UNet, pictures: Batch) -> float:
    """The loss of `pictures` as worker.loop.validation takes it, at its timesteps with fixed noise, but all at once."""
    shape, device = pictures.latents.shape, pictures.latents.device
    schedule = noise_schedule(LOSS, device)
    losses: list[Tensor] = []
    for timestep in fixed_timesteps(LOSS):
        noise = torch.randn(shape, generator=generator("precision", timestep)).to(device)
        timesteps = torch.full((shape[0],), timestep, device=device)
        losses.append(diffusion_loss(unet, schedule, pictures, noise, timesteps, LOSS))
    return torch.stack(losses).mean().item()


class Bench:
    """The lesson, encoded once in FP32, and what trained weights are measured with."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.base = device, open_base_model(BASE)
        with tempfile.TemporaryDirectory() as folder:
            held_out = Path(folder, "held-out")
            write_dataset(held_out, "star", HELD_OUT, seed=OTHER_DRAWS)
            cache = Cache(Path(folder, "cache"))
            self.examples, self.empty = self._encode(EXAMPLES / "stars", cache)
            self.shapes, _ = self._encode(EXAMPLES / "shapes", cache)
            examples, _ = self._encode(held_out, cache)
        self.held_out = Batches(examples, self.empty, HELD_OUT, seed=0).at(0)
        self.unet = load_unet(self.base, device, torch.float32)
        self.weights = {name: weight.clone() for name, weight in self.unet.state_dict().items()}
        self.artist = Artist(BASE, self.unet, device)

    def _encode(self, folder: Path, cache: Cache) -> tuple[list[Example], TextEmbedding]:
        options = DatasetConfig(str(folder))
        pictures = read_dataset(options).pictures
        shots = [Shot(each, cut_for(each.size_px, bucket_sizes(RESOLUTION))) for each in pictures]
        latents = encode_pictures(shots, cache, self.base, self.device, torch.float32)
        views = [view_of(shot, each, options) for shot, each in zip(shots, latents, strict=True)]
        texts = ["", *(picture.caption for picture in pictures)]
        empty, *captions = encode_captions(texts, cache, self.base, self.device, torch.float32)
        return [Example(view, (caption,)) for view, caption in zip(views, captions, strict=True)], empty

    def batches(self, seed: int) -> Batches:
        return Batches(self.examples, self.empty, BATCH_SIZE, seed, CAPTION_DROPOUT, Regularisation(self.shapes))

    @torch.no_grad()
    def loss_of(self, added: dict[str, Tensor]) -> float:
        """The held-out loss with so much more in some of the U-Net's weights; leaves it there, to draw with."""
        self.unet.load_state_dict(self.weights | {name: self.weights[name] + change for name, change in added.items()})
        return held_out_loss(self.unet, self.held_out.to(self.device))

    @torch.no_grad()
    def measure(self, trained: LoRA | FullWeights, drawn: int) -> tuple[float, Tensor, float | None]:
        """Held-out loss, all that was added to the U-Net's weights in one row [n], and the share of right stars."""
        added = changes(trained, self.weights)
        loss = self.loss_of(added)
        stars = rates(self.artist.judge(questions("star", drawn)[0], seed=1))["right"] if drawn else None
        return loss, torch.cat([change.flatten() for change in added.values()]), stars


def learn(bench: Bench, task: Task, name: str, reference: dict[int, Tensor]) -> Iterator[Point]:
    """Train one arm. One in FP32 fills `reference`, what it added by step, which the others are compared with."""
    arm, began = ARMS[name], time.perf_counter()
    seed = task.seed + OTHER_DRAWS * arm.other_draws
    config = TrainConfig(
        task.steps,
        seed,
        optimizer=OptimizerConfig(learning_rate=task.learning_rate),
        lr_schedule=ScheduleConfig("cosine", warmup_steps=min(WARMUP_STEPS, task.steps // 2)),
        loss=LOSS,
    )
    unet, trained, state = begin(arm, bench.base, config, task.seed, bench.device)
    at = {task.steps * (k + 1) // task.points for k in range(task.points)}
    before, moved, since = rows(trained), torch.zeros(1 if arm.whole else 2, device=bench.device), 0
    for result in train(unet, trained, bench.batches(seed), config, state):
        after = rows(trained)
        moved += torch.stack([(new != old).float().mean() for new, old in zip(after, before, strict=True)])
        before, since = after, since + 1
        if result.step in at:
            loss, added, stars = bench.measure(trained, task.drawn if result.step == task.steps else 0)
            if name == reference_of(name):
                reference[result.step] = added
            theirs = reference.get(result.step)
            distance = None if theirs is None else ((added - theirs).norm() / theirs.norm()).item()
            seconds = round(time.perf_counter() - began, 1)
            shares = [*(moved / since).tolist(), None][:2]
            yield Point(name, task.learning_rate, task.seed, result.step, loss, distance, *shares, stars, seconds)
            moved.zero_()
            since = 0
        if time.time() > task.deadline:
            return


def run(task: Task) -> None:
    """Train all arms of a task, and print what comes."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(task.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_num_threads(1)  # many processes share the machine
    bench, references = Bench(device), defaultdict[str, dict[int, Tensor]](dict)
    for name in task.arms:
        if time.time() > task.deadline:
            return
        for point in learn(bench, task, name, references[reference_of(name)]):
            print(json.dumps(asdict(point)), flush=True)


def main() -> None:
    adapters = [name for name, arm in ARMS.items() if not arm.whole]
    parser = argparse.ArgumentParser(description="Train the drawing model's lesson in several precisions.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-3], help="peak learning rates")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=adapters)
    parser.add_argument("--points", type=int, default=6, help="measures so often in a training")
    parser.add_argument("--drawn", type=int, default=28, help="stars drawn at the end")
    parser.add_argument("--minutes", type=float, default=60.0, help="no step begins later")
    parser.add_argument("--processes", type=int, default=1, help="tasks at once; one is a rate and a seed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    print(json.dumps(_where(arguments.device) | vars(arguments)), flush=True)
    same = (tuple(arguments.arms), arguments.steps, arguments.points, arguments.drawn)
    pairs = [(rate, seed) for seed in arguments.seeds for rate in arguments.rates]
    devices = itertools.cycle(_devices(arguments.device))
    tasks = [Task(*pair, *same, device, deadline) for pair, device in zip(pairs, devices, strict=False)]
    with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(run, tasks):
            pass


def _devices(device: str) -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if device == "cuda" else [device]


def _where(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {"torch": torch.__version__, "hardware": name}


if __name__ == "__main__":
    main()

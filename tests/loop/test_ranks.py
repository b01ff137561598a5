"""Several ranks train as one process does whose batch is that of all of them, and checkpoints serve any number."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from tests.loop.several import (
    EVERYTHING,
    INTERFERE,
    NAMES,
    Facts,
    alone,
    assert_close,
    everything,
    launched,
    losses,
    run,
    weights,
)
from worker.loop.config import CheckpointsConfig
from worker.loop.config import TrainerConfig as Config
from worker.loop.ranks import Ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def make(folder: Path, tiny_base: Path, photos: Path) -> Callable[..., Config]:
    """The same training, with all there is, into an output folder of its own."""

    def make(output: str, batch_size: int, resume_from: Path | None = None) -> Config:
        return everything(folder, tiny_base, photos, output, batch_size, resume_from)

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the processes have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def by_two(make: Callable[..., Config], folder: Path) -> tuple[Config, Facts]:
    """Trained by two ranks of batch 2."""
    config = make("two", 2)
    return config, run(config, folder)


@pytest.fixture(scope="module")
def by_one(make: Callable[..., Config], one_thread: None, by_two: object) -> tuple[Config, Facts]:
    """Trained by one process of batch 4."""
    config = make("one", 4)
    return config, alone(config)


def checkpoint(config: Config) -> Path:
    return Path(config.output) / "checkpoints" / "step-000003"


def first_gradient(config: Config) -> dict[str, Tensor]:
    """Of the first step, clipped, times 1 - beta1: what the optimizer's first moment then is."""
    folder = Path(config.output) / "checkpoints" / "step-000001"
    tensors = safetensors.torch.load_file(folder / "optimizer.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith(".exp_avg")}


def assert_equal(ours: Config, theirs: Config) -> None:
    for name in NAMES:
        expected = weights(theirs, name)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(ours, name).items())
    assert losses(ours) == losses(theirs)


def test_two_ranks_equal_one_of_twice_the_batch(
    by_two: tuple[Config, Facts], by_one: tuple[Config, Facts], make: Callable[..., Config]
) -> None:
    assert_close(by_two[0], by_one[0])
    other = dataclasses.replace(make("other", 4), train=dataclasses.replace(EVERYTHING, seed=4))
    alone(other)
    with pytest.raises(AssertionError):  # the tolerance tells trainings apart
        assert_close(other, by_one[0])


def test_the_first_gradient_of_two_ranks_is_that_of_the_whole_batch(
    by_two: tuple[Config, Facts], by_one: tuple[Config, Facts]
) -> None:
    ours, theirs = first_gradient(by_two[0]), first_gradient(by_one[0])
    largest = max(tensor.abs().max() for tensor in theirs.values())
    assert len(theirs) > 50
    assert largest > 1e-4
    for name, tensor in ours.items():  # no optimizer between, so nothing but rounding: 1e-6 was measured
        assert (tensor - theirs[name]).abs().max() < 5e-6 * largest, name


def test_two_ranks_report_as_one_does(by_two: tuple[Config, Facts], by_one: tuple[Config, Facts]) -> None:
    def told(facts: Facts) -> list[tuple]:
        return [
            (fact["fact"], fact.get("step"), fact.get("path"), fact.get("files"), fact.get("bucket_sizes"))
            for fact in facts
            if fact["fact"] != "encoded"
        ]

    assert told(by_two[1]) == told(by_one[1])
    encoded = [fact["done"] for fact in by_two[1] if fact["fact"] == "encoded"]
    assert encoded == sorted(set(encoded))
    assert encoded[-1] == 18  # eight pictures, eight captions, the empty one and a prompt


def test_two_ranks_go_on_from_their_checkpoint_to_the_bit(
    by_two: tuple[Config, Facts], make: Callable[..., Config], folder: Path
) -> None:
    config = make("two again", 2, checkpoint(by_two[0]))
    facts = run(config, folder)
    assert [fact["step"] for fact in facts if fact["fact"] == "step"] == [4, 5, 6]
    assert_equal(config, by_two[0])


@pytest.mark.parametrize(("gpus", "batch_size"), [(1, 4), (4, 1)])
def test_another_number_of_ranks_goes_on_from_a_checkpoint(
    by_two: tuple[Config, Facts], make: Callable[..., Config], folder: Path, gpus: int, batch_size: int
) -> None:
    config = make(f"by {gpus}", batch_size, checkpoint(by_two[0]))
    facts = alone(config) if gpus == 1 else run(config, folder, gpus)
    assert [fact["step"] for fact in facts if fact["fact"] == "step"] == [4, 5, 6]
    assert_close(config, by_two[0])


def test_a_process_alone_exchanges_nothing() -> None:
    ranks, tensor = Ranks(), torch.ones(2)
    ranks.average([tensor])
    assert tensor.tolist() == [1, 1]
    assert (ranks.first, ranks.any(True), ranks.any(False)) == (True, True, False)
    assert list(ranks.share("abc")) == ["a", "b", "c"]
    assert ranks.part(3) == slice(0, 3)


def test_shares_and_parts_make_up_the_whole() -> None:
    ranks = [Ranks(rank, 3) for rank in range(3)]
    assert sorted("".join(each.share("abcdefgh")) for each in ranks) == ["adg", "beh", "cf"]
    assert [list(range(6))[each.part(2)] for each in ranks] == [[0, 1], [2, 3], [4, 5]]


def test_only_the_first_rank_writes(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(2, checkpoints=CheckpointsConfig(every_n_steps=1))
    break_ = "from worker.loop import training as t; t.save_state = t.prune = t.Metrics = t.write_outputs = None"
    with launched(config, tmp_path, program=INTERFERE.format(interference=break_)) as several:
        assert several.finish() == 0, several.log.read_text()
    assert several.facts[-1]["fact"] == "finished"


def test_each_machine_says_once_what_the_first_rank_of_all_to_fail_said(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    said: list[str | None] = []
    for rank, machine, own in [(2, 1, "no memory"), (0, 0, "the exchange failed"), (1, 0, "it failed"), (3, 1, "also")]:
        monkeypatch.setenv("GROUP_RANK", str(machine))
        said.append(Ranks(rank, 4, rank % 2, store).why(own))
    assert said == ["no memory", "no memory", None, None]
    assert Ranks().why("alone") == "alone"

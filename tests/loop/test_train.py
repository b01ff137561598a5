"""The loop trains the adapter, nothing else, and tells what it did."""

from collections.abc import Callable

import pytest
import torch

from worker.data.batches import Batches
from worker.errors import NanLoss
from worker.loop.config import LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from worker.loop.optim import make_optimizer
from worker.loop.step import diffusion_loss, draw_noise
from worker.loop.train import StepResult, TrainState, train
from worker.model.schedule import NoiseSchedule
from worker.model.unet import UNet

CPU = torch.device("cpu")
FAST = OptimizerConfig(learning_rate=5e-3)


@torch.no_grad()
def fixed_loss(unet: UNet, batches: Batches) -> float:
    """Loss over all photos at five timesteps each, with noise that depends on nothing of the training."""
    schedule, losses = NoiseSchedule(), []
    for position in range(len(batches)):
        batch = batches.at(position)
        for timestep in (50, 200, 400, 700, 950):
            noise, timesteps = draw_noise(batch.latents.shape, LossConfig(), 12345, position, timestep, CPU)
            timesteps = torch.full_like(timesteps, timestep)
            losses.append(diffusion_loss(unet, schedule, batch, noise, timesteps, LossConfig()).item())
    return sum(losses) / len(losses)


def test_the_adapter_learns_and_the_base_never_moves(make_setup: Callable) -> None:
    yardstick = make_setup(seed=77, batch_size=1).batches
    optimizer, schedule = OptimizerConfig(learning_rate=1e-2), ScheduleConfig("cosine", warmup_steps=3)
    before, after = [], []
    for seed in (0, 1, 2):
        setup = make_setup(seed, batch_size=8, targets="transformer")
        base = {name: p.clone() for name, p in setup.unet.named_parameters() if not p.requires_grad}
        start = {name: weight.clone() for name, weight in setup.lora.state_dict().items()}
        before.append(fixed_loss(setup.unet, yardstick))
        for _ in train(*setup, TrainConfig(20, seed=seed, optimizer=optimizer, lr_schedule=schedule)):
            pass
        after.append(fixed_loss(setup.unet, yardstick))
        parameters = dict(setup.unet.named_parameters())
        assert all(torch.equal(parameters[name], weight) for name, weight in base.items())
        assert not any(torch.equal(weight, start[name]) for name, weight in setup.lora.state_dict().items())
    assert max(before) == min(before)  # lora_B is zero: the base alone
    gain, spread = before[0] - max(after), max(after) - min(after)
    assert gain > 0.08 * before[0], (before, after)  # measured: 0.802 to 0.692, 0.682, 0.694
    assert gain > 5 * spread, (before, after)


def test_results_say_what_was_done(make_setup: Callable) -> None:
    results = list(train(*make_setup(), TrainConfig(3)))
    assert [result.step for result in results] == [1, 2, 3]
    for result in results:
        assert isinstance(result, StepResult)
        assert result.loss > 0
        assert result.lr == 1e-4
        assert 0 < result.seconds < 60
        assert result.peak_bytes is None


def test_the_same_training_twice_is_the_same_to_the_bit(make_setup: Callable) -> None:
    first, second = make_setup(caption_dropout=0.3), make_setup(caption_dropout=0.3)
    losses = [result.loss for result in train(*first, TrainConfig(4))]
    torch.manual_seed(4)
    assert [result.loss for result in train(*second, TrainConfig(4))] == losses
    state = second.lora.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in first.lora.state_dict().items())


@pytest.mark.parametrize("max_norm", [None, 1e-3])
def test_a_step_is_one_adamw_update_by_the_mean_gradient_of_its_micro_steps(
    make_setup: Callable, max_norm: float | None
) -> None:
    config = TrainConfig(
        2, gradient_accumulation=3, optimizer=FAST, max_grad_norm=max_norm, loss=LossConfig(min_snr_gamma=5.0)
    )
    ours = make_setup()
    losses = [result.loss for result in train(*ours, config)]

    theirs, schedule = make_setup(), NoiseSchedule()
    optimizer, parameters = make_optimizer(theirs.lora.parameters(), FAST), theirs.lora.parameters()
    for step in (1, 2):
        total = torch.zeros(())
        for micro_step in range(3):
            batch = theirs.batches.at((step - 1) * 3 + micro_step)
            noise, timesteps = draw_noise(batch.latents.shape, LossConfig(), 0, step, micro_step, CPU)
            total = total + diffusion_loss(theirs.unet, schedule, batch, noise, timesteps, config.loss)
        loss = total / 3
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 1e-3  # else nothing would be clipped
        factor = 1.0 if max_norm is None else max_norm / norm
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * factor
        optimizer.step()
        assert losses[step - 1] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in ours.lora.state_dict().items():
        # Adam divides by the gradient's own size, so that rounding of a tiny one shows at the learning rate's scale.
        torch.testing.assert_close(weight, theirs.lora.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_step(make_setup: Callable) -> None:
    setup = make_setup()
    steps = train(*setup, TrainConfig(5))
    next(steps)
    with torch.no_grad():
        setup.lora.parameters()[0].fill_(torch.nan)
    with pytest.raises(NanLoss, match=r"The loss is nan in step 2: lower the learning rate"):
        next(steps)


def test_a_gradient_that_is_not_finite_stops_the_training(make_setup: Callable) -> None:
    setup = make_setup()
    setup.lora.parameters()[1].register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NanLoss, match=r"The gradient's norm is (nan|inf) in step 1"):
        next(train(*setup, TrainConfig(5)))


def test_a_finished_state_trains_no_further(make_setup: Callable) -> None:
    setup = make_setup()
    state = TrainState.begin(setup.lora, TrainConfig(1))
    assert len(list(train(*setup, TrainConfig(1), state))) == 1
    assert list(train(*setup, TrainConfig(1), state)) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_same_steps_on_a_gpu(make_setup: Callable) -> None:
    theirs, ours = make_setup(), make_setup()
    config = TrainConfig(5, optimizer=FAST, gradient_accumulation=2, loss=LossConfig(min_snr_gamma=5.0))
    losses = [result.loss for result in train(*theirs, config)]
    ours.unet.to("cuda")
    results = list(train(*ours, config))
    assert [result.loss for result in results] == pytest.approx(losses, rel=2e-2)  # same noise, other kernels (TF32)
    assert all(result.peak_bytes for result in results)

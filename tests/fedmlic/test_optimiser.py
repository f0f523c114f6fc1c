"""The optimisers against torch.optim, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from fedmlic.experiment import Experiment
from fedmlic.optimiser import clip_norm, clip_rows, learning_rate, make_optimiser

SETTINGS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1},
]


SHAPES = [(1000,), (20, 3, 2), ()]


def torch_optimiser(parameters, settings):
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(parameters, lr=rate, weight_decay=decay)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_steps_as_torch(settings):
    experiment = Experiment(learning_rate=0.03, **settings)
    rng = torch.Generator().manual_seed(3)
    start = [torch.randn(shape, generator=rng) for shape in SHAPES]
    ours = [values.clone() for values in start]
    theirs = [torch.nn.Parameter(values.clone()) for values in start]
    step, reference = make_optimiser(ours, experiment, 1), torch_optimiser(theirs, experiment)
    for _ in range(20):
        for mine, other in zip(ours, theirs, strict=True):
            gradient = torch.randn(mine.shape, generator=rng) * 10 ** torch.randn((), generator=rng)
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        step()
        reference.step()

    for mine, other, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(mine, before)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_that_finish_early_are_trained_as_if_they_were_alone(settings):
    experiment = Experiment(learning_rate=0.03, **settings)
    rng = torch.Generator().manual_seed(4)
    num_steps = [6, 6, 3, 1]
    matrix = torch.randn(len(num_steps), 7, generator=rng)
    alone = [row.clone() for row in matrix]
    gradients = torch.randn(max(num_steps), *matrix.shape, generator=rng)
    step = make_optimiser([matrix], experiment, 1)
    for number, gradient in enumerate(gradients):
        matrix.grad = gradient.clone()
        step(sum(count > number for count in num_steps))
    for row, (values, count) in enumerate(zip(alone, num_steps, strict=True)):
        own = make_optimiser([values], experiment, 1)
        for gradient in gradients[:count]:
            values.grad = gradient[row].clone()
            own()

        torch.testing.assert_close(matrix[row], values)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clip_norm_is_torchs(scale):
    rng = torch.Generator().manual_seed(1)
    ours, theirs = ([torch.zeros(shape) for shape in SHAPES] for _ in range(2))
    for mine, other in zip(ours, theirs, strict=True):
        gradient = torch.randn(mine.shape, generator=rng) * scale
        mine.grad, other.grad = gradient.clone(), gradient.clone()
    clip_norm(ours, 2.0)
    torch.nn.utils.clip_grad_norm_(theirs, 2.0)

    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_rows_are_clipped_one_by_one():
    rng = torch.Generator().manual_seed(1)
    stacks = [torch.zeros(3, *shape) for shape in SHAPES]
    for stack in stacks:
        stack.grad = torch.stack([torch.randn(stack.shape[1:], generator=rng) * scale for scale in (0.01, 1.0, 9.0)])
    alone = [[torch.zeros(shape) for shape in SHAPES] for _ in range(3)]
    for client, tensors in enumerate(alone):
        for tensor, stack in zip(tensors, stacks, strict=True):
            tensor.grad = stack.grad[client].clone()
        clip_norm(tensors, 2.0)
    clip_rows(stacks, 2.0)

    for place, stack in enumerate(stacks):
        torch.testing.assert_close(stack.grad, torch.stack([tensors[place].grad for tensors in alone]))


def test_cosine_falls_from_the_full_rate_towards_nothing():
    experiment = Experiment(schedule="cosine", learning_rate=0.1, num_rounds=10)
    rates = [learning_rate(experiment, number) for number in range(1, 11)]

    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.05 * (1 + math.cos(0.9 * math.pi)))
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("rounds", [6, 7, 23, 80])
def test_one_cycle_is_torchs_with_a_round_for_a_step(rounds):
    experiment = Experiment(schedule="one_cycle", learning_rate=0.1, num_rounds=rounds)
    step = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    cycle = OneCycleLR(step, max_lr=0.1, total_steps=rounds, pct_start=0.2, cycle_momentum=False)
    expected = []
    for number in range(rounds):
        expected.append(step.param_groups[0]["lr"])
        step.step()
        if number < rounds - 1:
            cycle.step()

    assert [learning_rate(experiment, number) for number in range(1, rounds + 1)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rounds", range(1, 6))
def test_one_cycle_of_few_rounds_falls_from_the_full_rate(rounds):
    experiment = Experiment(schedule="one_cycle", learning_rate=0.1, num_rounds=rounds)
    rates = [learning_rate(experiment, number) for number in range(1, rounds + 1)]

    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1 if rounds == 1 else 0.1 / 250_000)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_missing_gradient_is_zero(settings):
    experiment = Experiment(learning_rate=0.03, **settings)
    left, right = torch.ones(3), torch.ones(3)
    left.grad = torch.zeros(3)
    for values in (left, right):
        make_optimiser([values], experiment, 1)()

    assert torch.equal(left, right)

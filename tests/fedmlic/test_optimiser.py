"""The flat optimisers against torch.optim, step by step."""

from __future__ import annotations

import math

import pytest
import torch

from fedmlic.experiment import Experiment
from fedmlic.optimiser import clip_norm, learning_rate, make_optimiser

SETTINGS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1},
]


def torch_optimiser(parameter, settings):
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD([parameter], lr=rate, momentum=settings.momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind([parameter], lr=rate, weight_decay=decay)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_steps_as_torch(settings):
    experiment = Experiment(learning_rate=0.03, **settings)
    rng = torch.Generator().manual_seed(3)
    start = torch.randn(1000, generator=rng)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    step, reference = make_optimiser(ours, experiment, 1), torch_optimiser(theirs, experiment)
    for _ in range(20):
        gradient = torch.randn(1000, generator=rng) * 10 ** torch.randn((), generator=rng)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        step()
        reference.step()

    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours, start)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clip_norm_is_torchs(scale):
    gradient = torch.randn(500, generator=torch.Generator().manual_seed(1)) * scale
    ours, theirs = torch.zeros(500), torch.zeros(500)
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    clip_norm(ours, 2.0)
    torch.nn.utils.clip_grad_norm_([theirs], 2.0)

    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cosine_falls_from_the_full_rate_towards_nothing():
    experiment = Experiment(schedule="cosine", learning_rate=0.1, num_rounds=10)
    rates = [learning_rate(experiment, number) for number in range(1, 11)]

    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.05 * (1 + math.cos(0.9 * math.pi)))
    assert rates == sorted(rates, reverse=True)


def test_a_missing_gradient_is_an_error():
    with pytest.raises(RuntimeError, match="gradient"):
        make_optimiser(torch.zeros(3), Experiment(), 1)()

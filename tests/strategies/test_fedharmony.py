"""The rule fedharmony by hand: sizes first, agreement later, and what it cannot do without."""

import math

import pytest
import torch
from torch import nn

from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.update import Update, units_for
from strategies.strategy import Round, State

SIZES, VALUES, DISTANCES = (10, 90), (1.0, 5.0), (0.0, math.log(3))


def layout():
    return Resident(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), num_labels=3, label_rows=["1.weight"]).layout


def merged(number, text="fedharmony(rounds=4)", told=DISTANCES, order=(0, 1)):
    strategy, shape, found = spec.build("strategy", text), layout(), []
    for client in order:
        update = Update.zero(shape, units_for(strategy.weighting, [SIZES[client]], 3))
        metrics = {} if told is None else {"disagreement": told[client]}
        update.add_client(
            client,
            torch.full((shape.size,), VALUES[client]),
            weighting=strategy.weighting,
            num_images=SIZES[client],
            annotations=torch.tensor([1, 0, 0]),
            metrics=metrics,
        )
        found.append(update)
    return strategy.aggregate(State(torch.full((shape.size,), 9.0)), iter(found), Round(number, 2, 2, shape))


@pytest.mark.parametrize(("number", "alpha"), [(1, 1.0), (2, 0.75), (3, 0.5), (5, 0.0), (9, 0.0)], ids=str)
def test_shares_by_hand(number, alpha):
    """Sizes give 0.1 and 0.9; distances 0 and log 3 give exp(0) : exp(-log 3) = 3/4 and 1/4."""
    share = alpha * 0.1 + (1 - alpha) * 0.75

    state = merged(number)

    for _, view in layout().views(state.flat):
        assert view.flatten().tolist() == pytest.approx([share * 1.0 + (1 - share) * 5.0] * view.numel(), rel=1e-6)
    assert state.metrics == {"alpha": alpha, "largest-share": pytest.approx(max(share, 1 - share))}


def test_gamma_zero_is_an_equal_mean_and_arrival_does_not_matter():
    assert merged(5, "fedharmony(rounds=4, gamma=0.0)").flat[0].item() == pytest.approx(3.0)
    assert torch.equal(merged(3).flat, merged(3, order=(1, 0)).flat)


def test_a_large_gamma_leaves_the_client_that_agrees_most():
    """exp(-2000) and exp(-2400) are 0 in float64; their ratio, exp(400), leaves the first client alone."""
    state = merged(5, "fedharmony(rounds=4, gamma=2000.0)", told=(1.0, 1.2))

    assert state.flat[0].item() == 1.0
    assert merged(5, "fedharmony(rounds=4, gamma=2000.0)", told=(1.0, 1.0)).flat[0].item() == 3.0


def test_distances_are_needed_only_once_they_count():
    assert merged(1, told=None).flat[0].item() == pytest.approx(0.1 * 1 + 0.9 * 5)
    with pytest.raises(InputError, match="Use the method fedharmony"):
        merged(2, told=None)


def test_another_method_is_refused_before_anything_is_read(play, tmp_path):
    with pytest.raises(InputError, match=r"method='fedharmony\(\)', not with bce"):
        play(tmp_path / "run", strategy="fedharmony()", method="bce()")

    assert not (tmp_path / "run").exists()

"""completeness_weighted by hand and against fedavg, of which it holds two."""

import pytest
import torch

from fedmlic import spec
from fedmlic.update import Update, units_for
from strategies.completeness_weighted import completeness_weights
from strategies.strategy import Round, State

SIZES, KNOWN = (10, 20, 6), ([10, 10, 10, 10], [5, 5, 10, 0], [0, 0, 0, 0])


def layout():
    from torch import nn

    from fedmlic.arrays import Resident

    network = nn.Linear(3, 4)
    return Resident(network, num_labels=4, label_rows=["weight", "bias"]).layout


def updates(strategy, order=(0, 1, 2), clients=(0, 1, 2)):
    shape = layout()
    found = []
    for client in order:
        if client not in clients:
            continue
        update = Update.zero(shape, units_for(strategy.weighting, [SIZES[client]], 4))
        flat = torch.full((shape.size,), float(client + 1))
        update.add_client(
            client,
            flat,
            weighting=strategy.weighting,
            num_images=SIZES[client],
            annotations=torch.tensor(KNOWN[client]),
            metrics={},
        )
        found.append(update)
    return found


def mean_of(text, **kwargs):
    strategy = spec.build("strategy", text)
    here = Round(1, 3, 3, layout())
    state = State(torch.full((layout().size,), 9.0))
    return strategy.aggregate(state, updates(strategy, **kwargs), here).flat


def test_weights_by_hand():
    strategy = spec.build("strategy", "completeness_weighted()")

    assert completeness_weights(updates(strategy), 2.0) == pytest.approx([10.0, 20 / 16, 0.0])
    assert mean_of("completeness_weighted()")[0].item() == pytest.approx((1 * 10 + 2 * 1.25) / 11.25, rel=1e-6)


@pytest.mark.parametrize(("power", "weights"), [(0.0, "images"), (1.0, "annotations")])
def test_it_holds_both_means(power, weights):
    total = sum(n for n in SIZES) if weights == "images" else sum(sum(known) for known in KNOWN)
    own = SIZES if weights == "images" else [sum(known) for known in KNOWN]
    expected = sum((client + 1) * weight for client, weight in enumerate(own)) / total

    assert mean_of(f"completeness_weighted(power={power})")[0].item() == pytest.approx(expected, rel=1e-6)


def test_the_order_of_arrival_does_not_matter_and_a_cohort_without_annotations_changes_nothing():
    assert torch.equal(mean_of("completeness_weighted()"), mean_of("completeness_weighted()", order=(2, 1, 0)))
    assert (mean_of("completeness_weighted()", clients=(2,)) == 9.0).all()
    assert (mean_of("completeness_weighted()", clients=()) == 9.0).all()

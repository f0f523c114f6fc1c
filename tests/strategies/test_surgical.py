"""surgical by hand and by a plain loop."""

import pytest
import torch
from torch import nn

from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.update import Update, units_for
from strategies.strategy import Round, State

SIZES, KNOWN = (10, 90, 6), ([10, 0, 0], [3, 90, 0], [0, 6, 0])


def layout():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    return Resident(network, num_labels=3, label_rows=["1.weight", "1.bias"]).layout


def merged(text, clients=(0, 1, 2)):
    strategy, shape, found = spec.build("strategy", text), layout(), []
    for client in clients:
        update = Update.zero(shape, units_for(strategy.weighting, [SIZES[client]], 3))
        flat = torch.full((shape.size,), (1.0, 5.0, 8.0)[client])
        known = torch.tensor(KNOWN[client])
        update.add_client(
            client, flat, weighting=strategy.weighting, num_images=SIZES[client], annotations=known, metrics={}
        )
        found.append(update)
    state = State(torch.full((shape.size,), 9.0))
    return dict(shape.views(strategy.aggregate(state, iter(found), Round(1, 3, 3, shape)).flat))


@pytest.mark.parametrize(
    ("text", "mean"), [("surgical()", 14 / 3), ("surgical(shared='images')", (10 + 450 + 48) / 106)]
)
def test_rows_by_hand(text, mean):
    """Label 0: (1 + 5) / 2; label 1: (5 + 8) / 2; label 2 stays; shared tensors over all three."""
    found = merged(text)

    assert found["1.bias"].tolist() == pytest.approx([3.0, 6.5, 9.0])
    assert found["1.weight"].flatten().tolist() == pytest.approx([3.0, 3.0, 6.5, 6.5, 9.0, 9.0])
    assert found["0.weight"].flatten().tolist() == pytest.approx([mean] * 4, rel=1e-6)


def test_a_label_of_one_client_is_its_own_and_arrival_does_not_matter():
    assert merged("surgical()", (0, 2))["1.bias"].tolist() == pytest.approx([1.0, 8.0, 9.0])
    forward, backward = merged("surgical()"), merged("surgical()", (2, 1, 0))
    assert all(torch.equal(forward[name], backward[name]) for name in forward)

"""Who is named, and means by weights by hand."""

import torch
from torch import nn

from fedmlic.arrays import Resident
from fedmlic.noisy_clients import is_among, mean_by
from fedmlic.update import Update, Weighting, units_for


def test_nobody_is_judged_before_the_server_names_somebody():
    assert is_among({}, "noisy", 3) is None
    assert is_among({"noisy": torch.tensor([], dtype=torch.int64)}, "noisy", 3) is False
    assert is_among({"noisy": torch.tensor([1, 3])}, "noisy", 3) is True


def updates(values):
    layout = Resident(nn.Linear(2, 3), num_labels=3, label_rows=["weight", "bias"]).layout
    found = []
    for client, value in enumerate(values):
        update = Update.zero(layout, units_for(Weighting("uniform"), [5], 3))
        flat, annotations = torch.full((layout.size,), value), torch.zeros(3, dtype=torch.int64)
        update.add_client(
            client, flat, weighting=Weighting("uniform"), num_images=5, annotations=annotations, metrics={}
        )
        found.append(update)
    return found


def test_means_by_hand():
    sent = updates([1.0, 5.0, 100.0])
    before = torch.full((sent[0].layout.size,), 7.0)

    mean = mean_by([3.0, 1.0, 0.0], sent, before)
    assert all((view == 2.0).all() for _, view in sent[0].layout.views(mean))
    assert torch.equal(mean_by([0.0, 0.0, 0.0], sent, before), before)

"""flag by hand and by a plain loop, rows that nobody has a positive of, completed labels, leave to count."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clients.host import passed_on
from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import COMPLETED, PREFIX
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.method import Local, Trained
from fedmlic.mods.positive_rows import positive_rows
from fedmlic.update import Update, units_for
from strategies.server.check import check_experiment
from strategies.strategy import Round, State

NUM_LABELS = 3
LABELS = (
    [[PRESENT, ABSENT, ABSENT], [PRESENT, UNKNOWN, ABSENT], [PRESENT, PRESENT, UNKNOWN]],
    [[PRESENT, ABSENT, ABSENT]],
)
"""Of two clients: 3 and 1 positives of label 0, 1 and 0 of label 1, none of label 2."""


def resident():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, NUM_LABELS))
    return Resident(network, num_labels=NUM_LABELS, label_rows=["1.weight", "1.bias"])


def sent(client, memory=None):
    """A client's update after a turn that led to numbers of 1 (client 0) or 5 (client 1)."""
    strategy, net = spec.build("strategy", "flag()"), resident()
    labels = np.array(LABELS[client], dtype=np.int8)
    shard = SimpleNamespace(client=client, num_images=len(labels), labels=labels)
    start, flat = torch.zeros(net.layout.size), torch.full((net.layout.size,), (1.0, 5.0)[client])
    local = Local(
        Experiment(), 1, client, torch.device("cpu"), lambda: net.network, start, net.layout, memory=memory or {}
    )
    hooks = [positive_rows().begin(net, shard, local)]
    out, _, extras = passed_on(hooks, net.layout, start, flat, Trained(0.0, 1, {}))
    update = Update.zero(net.layout, units_for(strategy.weighting, [3, 1], NUM_LABELS))
    known = torch.from_numpy((labels >= ABSENT).sum(axis=0))
    update.add_client(
        client, out, weighting=strategy.weighting, num_images=len(labels), annotations=known, metrics={}, extras=extras
    )
    return update


def merged(text, updates):
    layout = resident().layout
    state = State(torch.full((layout.size,), 9.0))
    flat = spec.build("strategy", text).aggregate(state, iter(updates), Round(1, 2, 2, layout)).flat
    return dict(layout.views(flat))


@pytest.mark.parametrize(("text", "last"), [("flag()", 9.0), ("flag(without='images')", 2.0)])
def test_rows_by_hand(text, last):
    """Label 0: (3 x 1 + 1 x 5) / 4; label 1: client 0 alone; label 2: nobody; shared: by images, likewise 2."""
    found = merged(text, [sent(0), sent(1)])

    for name in ("1.weight", "1.bias"):
        values = found[name].reshape(NUM_LABELS, -1)
        assert values[0].tolist() == pytest.approx([2.0] * values.shape[1])
        assert values[1].tolist() == pytest.approx([1.0] * values.shape[1])
        assert values[2].tolist() == pytest.approx([last] * values.shape[1])
    assert found["0.weight"].flatten().tolist() == pytest.approx([2.0] * 4)


def test_completed_labels_count_in_place_of_annotations():
    completed = {PREFIX + COMPLETED: torch.full((1, NUM_LABELS), PRESENT, dtype=torch.int8)}
    found = merged("flag()", [sent(0), sent(1, completed)])

    assert found["1.bias"].tolist() == pytest.approx([2.0, 3.0, 5.0])


def test_one_client_of_many_images_fits_and_the_mean_is_exact_for_equal_rows():
    updates = [sent(0), sent(0)]
    updates[1].clients = [1]

    assert merged("flag()", updates)["1.weight"][:2].flatten().tolist() == [1.0] * 4


def test_counts_need_leave(tiny):
    with pytest.raises(InputError, match="set allow-statistics=true"):
        check_experiment(*tiny(strategy="flag()"))
    check_experiment(*tiny(strategy="flag()", allow_statistics=True))


def test_a_mod_that_holds_back_a_part_of_the_rows_is_refused(tiny):
    """They came whole beside the model: added to a later change of the row they would come twice."""
    settings = {"strategy": "flag(without='images')", "allow_statistics": True}
    for mods in ("top_k()", "clip(norm=1.0), top_k(fraction=0.5)"):
        with pytest.raises(InputError, match=r"top_k\(.*\) would add what it holds back of them a second time"):
            check_experiment(*tiny(mods=mods, **settings))

    check_experiment(*tiny(mods="top_k(error_feedback=False), int8()", **settings))
    check_experiment(*tiny(mods="top_k()", strategy="fedavg()"))

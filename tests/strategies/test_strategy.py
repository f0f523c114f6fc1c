"""Helpers that strategies are made of."""

import torch

from fedmlic.arrays import Layout
from fedmlic.update import Update, Weighting, units_for
from strategies.strategy import Round, State, Strategy, only_the_model, total_of, weighted_mean

LAYOUT = Layout(("w",), ((3,),), 1, 0)
HERE = Round(1, 2, 2, LAYOUT)


def update(client, value, images):
    found = Update.zero(LAYOUT, units_for(Weighting(), [10, 30], 1))
    flat = LAYOUT.pack({"w": torch.full((3,), value)})
    found.add_client(client, flat, weighting=Weighting(), num_images=images, annotations=torch.tensor([1]), metrics={})
    return found


def test_a_strategy_is_one_function_and_the_rest_has_defaults():
    strategy = Strategy(weighted_mean)

    assert (strategy.needs, strategy.weighting, strategy.init) == ("sum", Weighting("images", "shared"), only_the_model)
    assert strategy.init(torch.ones(16), LAYOUT).memory == {}
    assert strategy.mods == ()


def test_the_total_reads_updates_once_and_is_nothing_for_nobody():
    read = []

    def stream():
        for client, images in ((0, 10), (1, 30)):
            read.append(client)
            yield update(client, float(client), images)

    total = total_of(stream())

    assert read == [0, 1]
    assert (total.clients, total.num_images) == ([0, 1], 40)
    assert total_of([]) is None


def test_the_weighted_mean_by_hand():
    state = State(torch.zeros(LAYOUT.size), {"m": torch.ones(1)})

    after = weighted_mean(state, [update(0, 4.0, 10), update(1, 8.0, 30)], HERE)

    assert LAYOUT.view(after.flat, "w").tolist() == [7.0, 7.0, 7.0]
    assert after.memory is state.memory
    assert weighted_mean(state, [], HERE) is state

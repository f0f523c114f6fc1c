"""What every strategy promises: all entries of the catalogue are found by themselves."""

import ast
import functools
import inspect
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clients.host import passed_on
from fedmlic.arrays import Layout, Resident
from fedmlic.experiment import Experiment
from fedmlic.labels import PRESENT, UNKNOWN
from fedmlic.method import Local, Trained
from fedmlic.spec import build, entries, factory
from fedmlic.sums import Declared
from fedmlic.update import Update, Weighting, units_for
from strategies.strategy import Round, State, Strategy

NAMES = os.environ.get("FEDMLIC_ENTRY", "").split() or entries("strategy")
VARIANTS = [*NAMES, "fedavg(weights='uniform')", "fedavg(weights='annotations')", "labelwise(shared='images')"]
every_strategy = pytest.mark.parametrize("name", VARIANTS)
CORRECTED = {"feddyn"}
"""Rules whose next model is a mean and a correction."""

every_mean = pytest.mark.parametrize("name", [name for name in VARIANTS if name.partition("(")[0] not in CORRECTED])
NUM_LABELS = 3
LAYOUT = Layout(
    ("mean", "var", "w", "head", "bias"),
    ((2,), (2,), (5,), (NUM_LABELS, 2), (NUM_LABELS,)),
    NUM_LABELS,
    2,
    (("mean", "var"),),
)
SIZES = (10, 200, 3, 57)
HERE = Round(1, len(SIZES), len(SIZES), LAYOUT)


def start(seed=0):
    flat = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))
    tensors = LAYOUT.unpack(flat)
    tensors["var"] = tensors["var"].abs()
    return LAYOUT.pack(tensors)


def model(client):
    return start(100 + client)


def known(client):
    """Client 2 annotated nothing; nobody annotated label 2."""
    return torch.tensor([[4, 10, 0], [100, 0, 0], [0, 0, 0], [57, 1, 0]])[client]


class Net(nn.Module):
    """A network of ``LAYOUT``, for the mods that a rule brings along."""

    def __init__(self):
        super().__init__()
        for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True):
            if name in {"mean", "var"}:
                self.register_buffer(name, torch.zeros(shape))
            else:
                self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def sent_by(strategy, client, flat, present=None):
    """What a client that trained to ``flat`` sends under the rule's own mods: its tensors and further sums."""
    resident = Resident(Net(), num_labels=NUM_LABELS, label_rows=("head", "bias"), moments=LAYOUT.moments)
    assert resident.layout == LAYOUT
    state = strategy.init(start(), LAYOUT)
    resident.load(state.flat)
    local = Local(
        Experiment(optimizer="sgd", num_clients=4, cohort_size=4),
        1,
        client,
        torch.device("cpu"),
        incoming=lambda: resident.network,
        start=state.flat,
        layout=LAYOUT,
        shared=state.shared,
    )
    present = known(client) if present is None else present
    labels = np.where(np.arange(SIZES[client])[:, None] < present.numpy(), np.int8(PRESENT), np.int8(UNKNOWN))
    shard = SimpleNamespace(client=client, num_images=SIZES[client], annotations=known(client).numpy(), labels=labels)
    hooks = [build("mods", text).begin(resident, shard, local) for text in strategy.mods]
    sent, _, extras = passed_on(hooks, LAYOUT, state.flat, flat, Trained(0.1, 2, {}))
    return sent, extras


def updates(strategy, clients=(0, 1, 2, 3), groups=None):
    """Their updates as a host would send them: one each, or one sum per group."""
    each = strategy.needs == "each"
    groups = [[client] for client in clients] if each or groups is None else groups
    units = units_for(strategy.weighting, SIZES, NUM_LABELS)
    sent = []
    for group in groups:
        total = Update.zero(LAYOUT, units_for(strategy.weighting, [SIZES[group[0]]], NUM_LABELS) if each else units)
        for client in group:
            sent_flat, extras = sent_by(strategy, client, model(client))
            total.add_client(
                client,
                sent_flat,
                weighting=strategy.weighting,
                num_images=SIZES[client],
                annotations=known(client),
                metrics={"loss": 0.1 * client, "steps": 2.0},
                extras=extras,
            )
        sent.append(total)
    return sent


def aggregate(name, sent=None, flat=None):
    strategy = build("strategy", name)
    state = strategy.init(start() if flat is None else flat, LAYOUT)
    return strategy.aggregate(state, iter(updates(strategy) if sent is None else sent), HERE)


def bits(state):
    held = {**state.memory, **{f"shared {name}": tensor for name, tensor in state.shared.items()}}
    return state.flat.numpy().tobytes(), {name: tensor.numpy().tobytes() for name, tensor in held.items()}


def test_the_catalogue_is_found():
    assert {"fedavg", "labelwise", "loss_weighted"} <= set(NAMES)


@every_strategy
def test_it_says_what_it_needs(name):
    strategy = build("strategy", name)

    assert isinstance(strategy, Strategy)
    assert strategy.needs in {"sum", "each"}
    assert isinstance(strategy.weighting, Weighting)
    assert isinstance(strategy.init(start(), LAYOUT), State)


@every_strategy
def test_the_first_model_is_the_one_given(name):
    state = build("strategy", name).init(start(), LAYOUT)

    assert torch.equal(state.flat, start())
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.memory.values())


@every_strategy
def test_without_updates_nothing_changes(name):
    strategy = build("strategy", name)
    state = strategy.init(start(), LAYOUT)
    before = bits(state)

    assert bits(strategy.aggregate(state, iter(()), HERE)) == before


@every_strategy
def test_the_state_that_goes_in_is_left_alone(name):
    strategy = build("strategy", name)
    state = strategy.init(start(), LAYOUT)
    before = bits(state)

    after = strategy.aggregate(state, iter(updates(strategy)), HERE)

    assert bits(state) == before
    assert after.flat.data_ptr() != state.flat.data_ptr()
    assert after.flat.dtype == torch.float32
    assert after.flat.shape == state.flat.shape
    assert torch.isfinite(after.flat).all()


@functools.cache
def aggregated_one_by_one(name):
    return bits(aggregate(name))


@every_strategy
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_neither_order_nor_grouping_of_updates_changes_a_bit(name, data):
    strategy = build("strategy", name)
    expected = aggregated_one_by_one(name)
    order = data.draw(st.permutations(range(4)))
    cut = data.draw(st.integers(1, 4))
    groups = [list(order[:cut]), *([client] for client in order[cut:])]

    assert expected == bits(aggregate(name, updates(strategy, order, groups)))


@every_mean
def test_clients_that_all_send_the_same_model_are_agreed_with(name):
    strategy = build("strategy", name)
    units = units_for(strategy.weighting, SIZES, NUM_LABELS)
    sent = []
    for client in (0, 1):
        update = Update.zero(LAYOUT, units)
        sent_flat, extras = sent_by(strategy, client, model(0), torch.tensor([1, 2, 3]))
        update.add_client(
            client,
            sent_flat,
            weighting=strategy.weighting,
            num_images=SIZES[client],
            annotations=torch.tensor([1, 2, 3]),
            metrics={"loss": float(client), "steps": 2.0},
            extras=extras,
        )
        sent.append(update)

    merged = aggregate(name, sent)

    for tensor, (_, view) in zip(LAYOUT.unpack(model(0)).values(), LAYOUT.views(merged.flat), strict=True):
        torch.testing.assert_close(view, tensor, rtol=1e-6, atol=1e-6)


@every_mean
def test_the_mean_lies_between_the_models(name):
    merged = aggregate(name)

    for tensor, view in LAYOUT.views(merged.flat):
        if tensor == "var":
            continue
        sent = torch.stack([LAYOUT.view(model(client), tensor) for client in range(4)] + [LAYOUT.view(start(), tensor)])
        assert (view <= sent.amax(0) + 1e-6).all()
        assert (view >= sent.amin(0) - 1e-6).all()


def declared(strategy, name):
    """What the server expects of the rule's mods, of clients that take two steps."""
    mods = [build("mods", text) for text in strategy.mods]
    return Declared(Experiment(strategy=name, optimizer="sgd", local_steps=2), mods)


@every_strategy
def test_what_its_mods_add_is_what_they_declare(name):
    strategy = build("strategy", name)
    promised = declared(strategy, name)
    for groups in ([[0], [1], [2], [3]], [[0, 2], [1, 3]], [[0, 1, 2, 3]]):
        for update in updates(strategy, groups=groups):
            sizes = [SIZES[client] for client in update.clients]
            assert not promised.problem(LAYOUT, sizes, update.annotations, update.extras, update.units.clients)


@every_strategy
def test_a_sum_that_nobody_declares_is_refused(name):
    strategy = build("strategy", name)
    _, extras = sent_by(strategy, 0, model(0))

    for wrong in ({**extras, "x": torch.zeros(1)}, dict(list(extras.items())[1:]) if extras else {"x": torch.zeros(1)}):
        assert declared(strategy, name).problem(LAYOUT, [SIZES[0]], known(0), wrong)


@every_strategy
def test_memory_survives_a_checkpoint(name):
    from safetensors.torch import load, save

    strategy = build("strategy", name)
    state = aggregate(name)
    restored = State(state.flat.clone(), *(load(save(held)) if held else {} for held in (state.memory, state.shared)))

    again = strategy.aggregate(restored, iter(updates(strategy)), HERE)

    assert bits(again) == bits(strategy.aggregate(state, iter(updates(strategy)), HERE))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_a_documented_keyword_with_a_default(name):
    make = factory("strategy", name)

    for parameter in inspect.signature(make).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
        assert f"{parameter.name}:" in make.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_entries_do_not_know_each_other(name):
    source = Path(inspect.getsourcefile(factory("strategy", name))).read_text(encoding="utf-8")
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}

    assert not imported & {f"strategies.{other}" for other in NAMES}


# Each by a plain loop


def plain_mean(weights):
    """float64 mean of the four models by tensor; ``weights`` gives a number per client, or one per row."""
    result = {}
    for name in LAYOUT.names:
        values = [LAYOUT.view(model(client), name).double() for client in range(4)]
        if name == "var":
            values = [v + LAYOUT.view(model(client), "mean").double() ** 2 for client, v in enumerate(values)]
        rows = name in {"head", "bias"}
        ws = [torch.as_tensor(weights(client, rows), dtype=torch.float64) for client in range(4)]
        ws = [w.view(-1, *[1] * (values[0].ndim - 1)) if w.ndim else w for w in ws]
        total = sum(w * v for w, v in zip(ws, values, strict=True)) / sum(ws)
        result[name] = torch.where(torch.isnan(total), LAYOUT.view(start(), name).double(), total)
    result["var"] = result["var"] - result["mean"] ** 2
    return result


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fedavg", lambda client, _: float(SIZES[client])),
        ("fedavg(weights='uniform')", lambda _, __: 1.0),
        ("fedavg(weights='annotations')", lambda client, _: float(known(client).sum())),
        ("labelwise", lambda client, rows: known(client) if rows else float(known(client).sum())),
        ("labelwise(shared='images')", lambda client, rows: known(client) if rows else float(SIZES[client])),
    ],
)
def test_means_are_those_of_a_plain_loop(name, weights):
    merged = LAYOUT.unpack(aggregate(name).flat)

    for tensor, expected in plain_mean(weights).items():
        torch.testing.assert_close(merged[tensor].double(), expected, rtol=1e-6, atol=1e-6, msg=tensor)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
def test_loss_weighted_is_a_softmax_of_losses(temperature):
    merged = aggregate(f"loss_weighted(temperature={temperature})").flat

    shares = torch.softmax(torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64) / temperature, 0)
    expected = plain_mean(lambda client, _: float(shares[client]))
    for tensor, view in LAYOUT.views(merged):
        torch.testing.assert_close(view.double(), expected[tensor], rtol=1e-5, atol=1e-5, msg=tensor)


def test_labelwise_keeps_the_row_that_nobody_annotated_bit_for_bit():
    merged = aggregate("labelwise").flat

    for tensor in ("head", "bias"):
        assert torch.equal(LAYOUT.view(merged, tensor)[2], LAYOUT.view(start(), tensor)[2])
        assert not torch.equal(LAYOUT.view(merged, tensor)[1], LAYOUT.view(start(), tensor)[1])

"""One flat vector stands for the whole network, and one client leaves nothing behind for the next."""

import copy
import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmlic.arrays import ALIGNMENT, Layout, Resident, sha256
from fedmlic.errors import InputError

NUM_LABELS = 3


class Net(nn.Module):
    """Something of every kind: shared, frozen, label rows, private, BatchNorm, a plain buffer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.frozen = nn.Linear(7, 7)
        self.frozen.requires_grad_(requires_grad=False)
        self.own = nn.Linear(7, 7)
        self.head = nn.Linear(7, NUM_LABELS)
        self.register_buffer("count", torch.zeros(2))

    def forward(self, inputs):
        self.count += 1
        return self.head(torch.relu(self.own(self.frozen(self.norm(self.body(inputs))))))


def network(seed=0):
    torch.manual_seed(seed)
    return Net()


def resident(net=None, **changes):
    settings = {
        "num_labels": NUM_LABELS,
        "label_rows": ("head.weight", "head.bias"),
        "private": ("own.weight", "own.bias"),
        "moments": [("norm.running_mean", "norm.running_var")],
    }
    return Resident(net or network(), **{**settings, **changes})


def data(seed=0, count=12):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=rng), (torch.rand(count, NUM_LABELS, generator=rng) < 0.5).float()


def loss_of(net, seed=0):
    inputs, targets = data(seed)
    return nn.functional.binary_cross_entropy_with_logits(net(inputs), targets)


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def train(held, seed=0, steps=5, make=OPTIMISERS["adam"]):
    held.network.train()
    optimiser = make(held.parameters)
    for step in range(steps):
        held.zero_grad()
        loss_of(held.network, seed * 100 + step).backward()
        optimiser.step()


# Layout


@st.composite
def layouts(draw):
    shared = draw(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4))
    rows = draw(st.lists(st.lists(st.integers(1, 4), max_size=2), max_size=3))
    shapes = [tuple(shape) for shape in shared] + [(NUM_LABELS, *shape) for shape in rows]
    names = tuple(f"t{i}" for i in range(len(shapes)))
    return Layout(names, tuple(shapes), NUM_LABELS, len(rows))


@given(layout=layouts(), seed=st.integers(0, 5))
def test_pack_and_unpack_are_inverse_and_tensors_are_aligned_and_apart(layout, seed):
    rng = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(s, generator=rng) for n, s in zip(layout.names, layout.shapes, strict=True)}

    flat = layout.pack(tensors)
    back = layout.unpack(flat)

    assert all(torch.equal(tensors[name], back[name]) for name in tensors)
    assert all(torch.equal(tensors[name], layout.view(flat, name)) for name in tensors)
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets)
    assert layout.num_values == sum(tensor.numel() for tensor in tensors.values())
    owner = torch.zeros(layout.size)
    for _, view in layout.views(owner):
        view.add_(1)
    assert owner.sum() == layout.num_values
    assert owner.max() <= 1 if layout.size else True
    rows = [name for name, _ in layout.row_views(flat)]
    assert rows == list(layout.names[len(layout.names) - layout.num_row_tensors :])
    assert all(layout.offsets[layout.names.index(name)] >= layout.rows_start for name in rows)


def test_check_names_what_is_missing_what_is_foreign_and_which_shapes_differ():
    layout = Layout(("a", "b", "c"), ((2,), (3,), (4,)), 1, 0)

    with pytest.raises(InputError) as caught:
        layout.pack({"a": torch.zeros(2), "b": torch.zeros(1, 3), "d": torch.zeros(1)})

    assert "missing ['c'], unexpected ['d'], wrong shapes ['b (1, 3) for (3,)']" in str(caught.value)


def test_the_hash_is_over_sorted_names_types_shapes_and_bytes_and_not_over_padding():
    layout = Layout(("b", "a"), ((2,), (1, 1)), 1, 0)
    flat = layout.pack({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3.0]])})
    text = b"a|float32|(1, 1)|" + struct.pack("<f", 3) + b"b|float32|(2,)|" + struct.pack("<2f", 1, 2)
    noisy = flat.clone()
    noisy[2:16] = 5

    assert sha256(layout, flat) == hashlib.sha256(text).hexdigest()
    assert sha256(layout, noisy) == sha256(layout, flat)
    assert sha256(layout, -flat) != sha256(layout, flat)


# Resident


def test_only_what_travels_is_in_the_layout_label_rows_last():
    held = resident()

    assert held.layout.names == (
        "norm.running_mean",
        "norm.running_var",
        "body.weight",
        "body.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    )
    assert held.layout.num_row_tensors == 2
    assert set(held.other_state()) == {
        "frozen.weight",
        "frozen.bias",
        "own.weight",
        "own.bias",
        "count",
        "norm.num_batches_tracked",
    }


def test_becoming_resident_changes_no_number():
    plain, held = network(), resident(network())

    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, held.network.state_dict()[name]), name
    assert torch.equal(plain.eval()(data()[0]), held.network.eval()(data()[0]))


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_one_flat_parameter_trains_like_many(kind):
    plain, held = network(), resident(network())
    plain.train()
    optimiser = OPTIMISERS[kind]([p for p in plain.parameters() if p.requires_grad])
    for step in range(5):
        optimiser.zero_grad()
        loss_of(plain, step).backward()
        optimiser.step()

    train(held, make=OPTIMISERS[kind])

    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(held.network.state_dict()[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
    assert not torch.equal(held.network.body.weight, network().body.weight)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_views_stay_views_and_padding_stays_zero(kind):
    held = resident()
    train(held, make=OPTIMISERS[kind])

    held.check()
    state = {**dict(held.network.named_parameters()), **dict(held.network.named_buffers())}
    for name, view in held.layout.views(held.flat):
        assert view.data_ptr() == state[name].data_ptr()
        assert torch.equal(view, state[name])
    assert torch.equal(held.layout.pack(held.layout.unpack(held.flat)), held.flat)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_nothing_of_one_client_is_left_for_the_next(kind):
    start = resident().flat.clone()
    held, alone = resident(), resident()
    held.load(start)
    train(held, seed=1, make=OPTIMISERS[kind])
    spoiled = {name: tensor.clone() for name, tensor in held.network.state_dict().items()}

    held.load(start)
    train(held, seed=2, make=OPTIMISERS[kind])
    alone.load(start)
    train(alone, seed=2, make=OPTIMISERS[kind])

    for name, tensor in alone.network.state_dict().items():
        assert tensor.numpy().tobytes() == held.network.state_dict()[name].numpy().tobytes(), name
    assert not torch.equal(spoiled["own.weight"], held.network.own.weight)


def test_load_resets_private_tensors_buffers_statistics_and_gradients():
    held = resident()
    before = copy.deepcopy(held.network.state_dict())
    start = held.flat.clone()
    train(held)
    assert held.network.count[0] > 0
    assert held.network.norm.num_batches_tracked > 0

    held.load(start)

    for name, tensor in before.items():
        assert torch.equal(tensor, held.network.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in held.parameters)


def test_a_method_that_drops_gradients_or_swaps_memory_does_not_reach_the_next_client():
    start = resident().flat.clone()
    held, alone = resident(), resident()
    held.network.zero_grad(set_to_none=True)
    held.network.body.weight.data = torch.ones(7, 5)
    held.network.head.bias.grad = torch.ones(NUM_LABELS)

    for each in (held, alone):
        each.load(start)
        train(each)

    assert torch.equal(alone.flat, held.flat)
    assert not torch.equal(alone.flat, start)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: setattr(net.body.weight, "data", torch.ones(7, 5)),
        lambda net: setattr(net.body.weight, "data", torch.ones(2, 2)),
        lambda net: setattr(net, "head", nn.Linear(7, NUM_LABELS)),
        lambda net: setattr(net.norm, "running_var", torch.ones(7)),
    ],
)
def test_training_that_would_be_lost_is_noticed(spoil):
    held = resident()
    held.check()

    spoil(held.network)

    with pytest.raises(RuntimeError, match="in place"):
        held.check()


def test_frozen_tensors_do_not_move():
    held = resident()
    train(held)

    assert torch.equal(held.network.frozen.weight, network().frozen.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_rows": ("heed.weight",)}, "Did you mean 'head.weight'"),
        ({"private": ("owm.bias",)}, "Did you mean 'own.bias'"),
        ({"label_rows": ("body.weight",)}, r"3 rows \(first axis\), got shape \(7, 5\)"),
    ],
)
def test_wrong_names_and_shapes_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        resident(**changes)


def test_label_rows_may_be_frozen_then_they_stay_at_home():
    net = network()
    net.head.requires_grad_(requires_grad=False)

    assert "head.weight" not in resident(net).layout.names

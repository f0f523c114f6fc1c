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


# A part of the exchanged tensors


@given(layout=layouts(), data=st.data(), seed=st.integers(0, 5))
def test_a_part_is_gathered_and_scattered_bit_for_bit(layout, data, seed):
    rng = torch.Generator().manual_seed(seed)
    names = data.draw(st.sets(st.sampled_from(layout.names))) if layout.names else set()
    whole, other = (torch.randn(layout.size, generator=rng) for _ in range(2))

    part = layout.only(names)
    values = layout.gather(whole, part)
    merged = layout.scatter(values, part, other)

    assert part.names == tuple(name for name in layout.names if name in names)
    assert all(part.shapes[part.names.index(name)] == layout.view(whole, name).shape for name in part.names)
    assert [name for name, _ in part.row_views(values)] == [
        name for name, _ in layout.row_views(whole) if name in names
    ]
    assert values.shape == (part.size,)
    for name, view in part.views(values):
        assert torch.equal(view, layout.view(whole, name))
    for name, view in layout.views(merged):
        assert torch.equal(view, layout.view(whole if name in names else other, name))
    assert part.only(part.names) == part
    rest = layout.only(set(layout.names) - names)
    assert part.num_values + rest.num_values == layout.num_values
    assert sha256(layout, layout.scatter(layout.gather(whole, rest), rest, merged)) == sha256(layout, whole)


def test_scattering_changes_neither_of_its_inputs():
    layout = resident().layout
    part = layout.only(["body.bias"])
    values, whole = torch.ones(part.size), torch.zeros(layout.size)

    merged = layout.scatter(values, part, whole)

    assert merged.sum() == 7
    assert whole.eq(0).all()
    merged.zero_()
    assert values.eq(1).all()


def test_a_part_with_foreign_names_or_half_a_norm_is_refused():
    layout = resident().layout

    with pytest.raises(InputError, match=r"Did you mean 'body\.bias'"):
        layout.only(["body.bia"])
    with pytest.raises(InputError, match="Add both"):
        layout.only(["norm.running_mean"])
    both = layout.only(["norm.running_mean", "norm.running_var", "head.bias"])
    assert (both.moments, both.num_row_tensors) == (layout.moments, 1)
    assert layout.only([]).size == 0


# A client's own tensors


OWN = ("own.weight", "own.bias", "norm.running_mean", "norm.running_var")


def test_private_tensors_and_statistics_come_back_to_their_client_only():
    held = resident(private=OWN)
    start = held.flat.clone()
    assert not {*OWN} & {*held.layout.names}
    assert held.layout.moments == ()
    assert set(held.private_names) == {*OWN}

    held.load(start)
    train(held, seed=1)
    first = held.private_tensors()
    held.load(start)
    train(held, seed=2)
    second = held.private_tensors()

    assert all(not torch.equal(first[name], second[name]) for name in OWN)
    for wanted in (first, second):
        held.load(start, wanted)
        for name in OWN:
            assert torch.equal(held.network.state_dict()[name], wanted[name])
    fresh = network().state_dict()
    held.load(start)
    for name in OWN:
        assert torch.equal(held.network.state_dict()[name], fresh[name])
    held.load(start, {"own.bias": first["own.bias"]})
    assert torch.equal(held.network.own.bias, first["own.bias"])
    assert torch.equal(held.network.own.weight, fresh["own.weight"])


def test_private_copies_do_not_move_with_the_network():
    held = resident(private=OWN)
    kept = held.private_tensors()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    train(held)

    assert all(torch.equal(before[name], kept[name]) for name in OWN)


@pytest.mark.parametrize(
    ("private", "message"),
    [
        ({"own.weight": torch.zeros(7)}, r"'own\.weight' to be \(7, 7\), got \(7,\)"),
        ({"body.weight": torch.zeros(7, 5)}, r"'body\.weight' to be one of"),
    ],
)
def test_memory_of_another_network_is_refused(private, message):
    held = resident()
    with pytest.raises(InputError, match=message):
        held.load(held.flat.clone(), private)


def test_training_on_with_private_tensors_is_training_one_network_on():
    """Two turns with what was kept between them are two turns of a network that nobody touched."""
    held, alone = resident(private=OWN), resident(private=OWN)
    train(held, seed=1)
    train(alone, seed=1)
    held.load(held.flat.clone(), held.private_tensors())
    train(held, seed=2)
    train(alone, seed=2)

    assert torch.equal(held.flat, alone.flat)
    assert all(torch.equal(held.private_tensors()[name], alone.private_tensors()[name]) for name in OWN)


# Some tensors train


def test_only_what_is_named_trains_and_nothing_else_needs_a_gradient():
    held = resident()
    before = {name: tensor.clone() for name, tensor in held.network.state_dict().items()}
    held.train_only(["head.weight", "head.bias"])
    held.training_network()
    optimiser = torch.optim.Adam(held.parameters, lr=0.1)

    for step in range(3):
        held.zero_grad()
        loss_of(held.training_network(), step).backward()
        optimiser.step()

    grads = {name: p.grad is not None for name, p in held.network.named_parameters()}
    assert {name for name, there in grads.items() if there} == {"head.weight", "head.bias"}
    for name, tensor in held.network.state_dict().items():
        assert torch.equal(tensor, before[name]) is (not name.startswith("head") and name != "count"), name
    assert held.trained == {"head.weight", "head.bias"}
    assert len(held.parameters) == 2


def test_frozen_statistics_are_used_and_do_not_move():
    held = resident()
    with torch.no_grad():
        held.network.norm.running_mean.fill_(0.3)
    inputs, _ = data()
    held.train_only(["body.weight"])

    network_ = held.training_network()
    seen = network_.norm(network_.body(inputs))

    assert held.network.norm.running_mean.eq(torch.tensor(0.3)).all()
    assert held.network.norm.num_batches_tracked == 0
    expected = nn.functional.batch_norm(
        held.network.body(inputs),
        held.network.norm.running_mean,
        held.network.norm.running_var,
        held.network.norm.weight,
        held.network.norm.bias,
        training=False,
    )
    torch.testing.assert_close(seen, expected)
    assert network_.body.training
    assert not network_.norm.training


def test_named_statistics_move_though_the_norm_has_frozen_weights():
    held = resident()
    held.train_only(["body.weight", "norm.running_mean", "norm.running_var"])

    loss_of(held.training_network()).backward()

    assert held.network.norm.running_mean.ne(0).any()
    assert held.network.norm.weight.grad is None


def test_after_a_stretch_everything_trains_again():
    held, alone = resident(), resident()
    start = held.flat.clone()
    held.train_only(["head.bias"])
    train(held)
    held.train_only(None)
    for each in (held, alone):
        each.load(start)
        each.training_network()
        train(each)

    assert held.trained is None
    assert all(parameter.requires_grad for parameter in held.parameters)
    assert all(module.training for module in held.training_network().modules())
    assert torch.equal(held.flat, alone.flat)


def test_each_parameter_gets_its_part_of_a_vector():
    held = resident()
    vector = torch.randn(held.layout.size)
    named = dict(held.network.named_parameters())

    for names in (None, ["own.bias", "head.bias", "body.weight"]):
        held.train_only(names)
        parts = held.per_parameter(vector)
        assert len(parts) == len(held.parameters)
        for parameter, part in zip(held.parameters, parts, strict=True):
            name = next(n for n, p in named.items() if p is parameter)
            if name.startswith("own"):
                assert part is None
            else:
                assert torch.equal(part, held.layout.view(vector, name))
    part_of = held.layout.only(["head.bias"])
    parts = held.per_parameter(torch.arange(float(part_of.size)), part_of)
    assert [None if part is None else part.tolist() for part in parts].count(None) == 2
    assert [0.0, 1.0, 2.0] in [part.tolist() for part in parts if part is not None]

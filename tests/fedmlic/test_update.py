"""Updates add exactly: against fractions, in any order and grouping, under adversarial numbers."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.arrays import Layout
from fedmlic.update import (
    COUNT_LIMIT,
    LIMIT,
    METRIC_LIMIT,
    QUANTUM_BITS,
    Units,
    Update,
    Weighting,
    units_for,
    weights_of,
)

NUM_LABELS = 3
LAYOUT = Layout(("shared", "rows", "bias"), ((5,), (NUM_LABELS, 2), (NUM_LABELS,)), NUM_LABELS, 2)
NORM = Layout(("mean", "var", "w"), ((4,), (4,), (2,)), 1, 0, (("mean", "var"),))
RULES = [Weighting(s, r) for s in ("images", "annotations", "uniform") for r in ("shared", "annotations")]

numbers = st.one_of(
    st.floats(-LIMIT, LIMIT, width=32),
    st.sampled_from([0.0, -0.0, 1e-30, -(2.0**-149), 2.0**-37, 3 * 2.0**-38, LIMIT, -LIMIT, 1 / 3]),
    st.floats(-1, 1, width=32),
)


@st.composite
def clients(draw, layout=LAYOUT, min_size=1, max_size=6):
    """Clients as (flat, images, annotations per label, loss)."""
    found = []
    for _ in range(draw(st.integers(min_size, max_size))):
        values = {
            name: torch.tensor(draw(st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape)))).view(
                shape
            )
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        }
        images = draw(st.integers(1, 5000))
        annotations = draw(st.lists(st.integers(0, images), min_size=layout.num_labels, max_size=layout.num_labels))
        loss = draw(st.floats(-1e6, 1e6))
        found.append((layout.pack(values), images, torch.tensor(annotations), loss))
    return found


def zero(people, weighting, layout=LAYOUT):
    return Update.zero(layout, units_for(weighting, [images for _, images, _, _ in people], layout.num_labels))


def add(update, client, person, weighting):
    flat, images, annotations, loss = person
    update.add_client(
        client, flat, weighting=weighting, num_images=images, annotations=annotations, metrics={"loss": loss}
    )
    return update


def same(first, second):
    """Bit for bit."""
    assert first.sums.numpy().tobytes() == second.sums.numpy().tobytes()
    assert first.row_weights.numpy().tobytes() == second.row_weights.numpy().tobytes()
    assert (first.weight, sorted(first.clients), first.num_images) == (
        second.weight,
        sorted(second.clients),
        second.num_images,
    )
    assert torch.equal(first.annotations, second.annotations)
    assert first.metrics == second.metrics


def fraction(tensor):
    return [Fraction(value) for value in tensor.double().reshape(-1).tolist()]


# Exactness


@settings(max_examples=150, deadline=None)
@given(data=st.data(), people=clients(), weighting=st.sampled_from(RULES))
def test_neither_order_nor_grouping_changes_a_single_bit(data, people, weighting):
    whole = zero(people, weighting)
    for client, person in enumerate(people):
        add(whole, client, person, weighting)

    # Deal the clients in any order to groups, then merge the groups pairwise in any order.
    order = data.draw(st.permutations(range(len(people))))
    groups = [zero(people, weighting) for _ in range(data.draw(st.integers(1, len(people))))]
    for client in order:
        add(groups[data.draw(st.integers(0, len(groups) - 1))], client, people[client], weighting)
    while len(groups) > 1:
        one = groups.pop(data.draw(st.integers(0, len(groups) - 1)))
        groups[data.draw(st.integers(0, len(groups) - 1))].merge(one)

    same(whole, groups[0])
    start = torch.zeros(LAYOUT.size)
    assert whole.mean(start).numpy().tobytes() == groups[0].mean(start).numpy().tobytes()


def test_order_does_not_matter_for_a_thousand_clients_of_every_magnitude():
    rng = np.random.default_rng(0)
    people = []
    for _ in range(1000):
        flat = rng.uniform(-1, 1, LAYOUT.size) * 2.0 ** rng.integers(-40, 15, LAYOUT.size)
        images = int(rng.integers(1, 10_000))
        people.append((torch.tensor(flat, dtype=torch.float32), images, torch.tensor([images, 0, 1]), float(flat[0])))
    weighting = Weighting("images", "annotations")
    forward, backward = zero(people, weighting), zero(people, weighting)
    for client, person in enumerate(people):
        add(forward, client, person, weighting)
    for client in reversed(range(1000)):
        add(backward, client, people[client], weighting)

    same(forward, backward)
    plain = sum((flat * images for flat, images, _, _ in people), torch.zeros(LAYOUT.size))
    turned = sum((flat * images for flat, images, _, _ in reversed(people)), torch.zeros(LAYOUT.size))
    assert not torch.equal(plain, turned), "float32 sums were expected to depend on the order"


@settings(max_examples=100, deadline=None)
@given(people=clients(), weighting=st.sampled_from(RULES))
def test_the_mean_is_that_of_fractions_within_float32_rounding(people, weighting):
    update = zero(people, weighting)
    for client, person in enumerate(people):
        add(update, client, person, weighting)
    before = torch.full((LAYOUT.size,), 7.0)

    mean = update.mean(before)

    quantum = Fraction(2) ** -QUANTUM_BITS
    for position, name in enumerate(LAYOUT.names):
        got = LAYOUT.view(mean, name).reshape(-1)
        for place in range(len(got)):
            label = place // (LAYOUT.shapes[position][1] if name == "rows" else 1)
            weights = []
            for _, images, annotations, _ in people:
                shared = {"images": images, "annotations": int(annotations.sum()), "uniform": 1}[weighting.shared]
                by_row = position > 0 and weighting.rows == "annotations"
                weights.append(Fraction(int(annotations[label]) if by_row else shared))
            if not sum(weights):
                assert got[place] == 7.0
                continue
            values = [fraction(LAYOUT.view(person[0], name))[place] for person in people]
            exact = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            unit = Fraction(update.units.rows if position else update.units.shared)
            # Each term was rounded to the quantum of the scaled sum; the result once to float32.
            slack = len(people) * quantum * unit / sum(weights) + abs(exact) * Fraction(2) ** -23 + Fraction(2) ** -149
            assert abs(Fraction(float(got[place])) - exact) <= slack


def test_a_mean_by_hand():
    layout = Layout(("w", "head"), ((2,), (2, 1)), 2, 1)
    weighting = Weighting("annotations", "annotations")
    first = (layout.pack({"w": torch.tensor([1.0, 2.0]), "head": torch.tensor([[10.0], [20.0]])}), 4, [3, 0], 0.5)
    second = (layout.pack({"w": torch.tensor([5.0, 6.0]), "head": torch.tensor([[30.0], [40.0]])}), 4, [1, 0], 1.5)
    people = [(flat, images, torch.tensor(known), loss) for flat, images, known, loss in (first, second)]
    update = zero(people, weighting, layout)
    for client, person in enumerate(people):
        add(update, client, person, weighting)
    before = layout.pack({"w": torch.zeros(2), "head": torch.tensor([[-1.0], [1 / 3]])})

    mean = update.mean(before)

    assert layout.view(mean, "w").tolist() == [2.0, 3.0]
    assert layout.view(mean, "head").tolist() == [[15.0], [pytest.approx(1 / 3)]]
    assert update.annotations.tolist() == [4, 0]
    assert update.metrics["loss"] == 2.0
    assert (update.clients, update.num_images) == ([0, 1], 8)


# Weights


def test_a_row_that_nobody_annotated_keeps_its_bits_even_strange_ones():
    person = (torch.ones(LAYOUT.size), 10, torch.tensor([4, 0, 2]), 0.0)
    weighting = Weighting("annotations", "annotations")
    update = add(zero([person], weighting), 0, person, weighting)
    before = torch.zeros(LAYOUT.size)
    LAYOUT.view(before, "rows")[1] = torch.tensor([-0.0, float("inf")])
    LAYOUT.view(before, "bias")[1] = 2.0**-149

    mean = update.mean(before)

    for name in ("rows", "bias"):
        old, new = LAYOUT.view(before, name), LAYOUT.view(mean, name)
        assert old[1].numpy().tobytes() == new[1].numpy().tobytes()
        assert (new[[0, 2]] == 1).all()


@pytest.mark.parametrize("weighting", RULES)
def test_nobody_leaves_the_model_as_it_was(weighting):
    before = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
    update = Update.zero(LAYOUT, units_for(weighting, [3], NUM_LABELS))

    assert torch.equal(update.mean(before), before)


def test_clients_without_annotations_have_no_say_where_annotations_count():
    weighting = Weighting("annotations", "annotations")
    silent = (torch.full((LAYOUT.size,), 9.0), 10, torch.tensor([0, 0, 0]), 0.0)
    before = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
    update = add(zero([silent], weighting), 0, silent, weighting)

    assert torch.equal(update.mean(before), before)
    assert update.clients == [0]


@given(
    weighting=st.sampled_from(RULES),
    images=st.lists(st.integers(1, 10**7), min_size=1, max_size=50),
    num_labels=st.integers(1, 2000),
)
def test_units_are_powers_of_two_under_which_a_round_sums_to_at_most_one(weighting, images, num_labels):
    units = units_for(weighting, images, num_labels)
    total_shared, total_rows = 0.0, 0.0
    for count in images:
        shared, rows = weights_of(weighting, count, torch.full((num_labels,), count))
        total_shared += shared / units.shared
        total_rows += float(rows.max()) / units.rows

    assert math.frexp(units.shared)[0] == 0.5
    assert math.frexp(units.rows)[0] == 0.5
    assert total_shared <= 1
    assert total_rows <= 1
    assert total_shared > 0.25


@pytest.mark.parametrize("weighting", RULES)
def test_weights_beyond_the_units_are_refused_and_change_nothing(weighting):
    small = (torch.ones(LAYOUT.size), 1, torch.tensor([1, 1, 1]), 0.0)
    large = (torch.ones(LAYOUT.size), 1000, torch.tensor([1000, 1000, 1000]), 0.0)
    update = Update.zero(LAYOUT, Units(2.0**-3 if weighting.shared == "uniform" else 4.0, 4.0))

    with pytest.raises(ValueError, match="weights to fit"):
        add(update, 0, large, weighting)

    same(update, Update.zero(LAYOUT, update.units))
    assert small[1] == 1


@settings(max_examples=60, deadline=None)
@given(
    people=clients(min_size=2, max_size=2),
    bad=st.sampled_from([math.nan, math.inf, -math.inf, LIMIT * 1.0001, -2 * LIMIT, 3e38]),
    place=st.integers(0, LAYOUT.num_values - 1),
)
def test_nan_infinite_and_too_large_numbers_are_refused_and_change_nothing(people, bad, place):
    weighting = Weighting()
    update, expected = (add(zero(people, weighting), 0, people[0], weighting) for _ in range(2))
    flat = people[1][0].clone()
    names = [name for name, view in LAYOUT.views(flat) for _ in range(view.numel())]
    values = [value for _, view in LAYOUT.views(flat) for value in view.reshape(-1)]
    values[place].fill_(bad)

    with pytest.raises(ValueError, match=names[place]):
        add(update, 1, (flat, *people[1][1:]), weighting)

    same(update, expected)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e300, 2 * METRIC_LIMIT])
def test_metrics_that_would_not_add_exactly_are_refused_and_change_nothing(loss):
    person = (torch.ones(LAYOUT.size), 4, torch.tensor([1, 2, 3]), loss)
    update = zero([person], Weighting())

    with pytest.raises(ValueError, match="metric loss"):
        add(update, 0, person, Weighting())

    same(update, zero([person], Weighting()))


def test_updates_of_different_rounds_do_not_merge():
    first = Update.zero(LAYOUT, Units(8.0, 8.0))

    with pytest.raises(ValueError, match="one round"):
        first.merge(Update.zero(LAYOUT, Units(16.0, 8.0)))
    with pytest.raises(ValueError, match="one round"):
        first.merge(Update.zero(NORM, Units(8.0, 8.0)))


def test_merging_leaves_the_other_update_alone():
    person = (torch.ones(LAYOUT.size), 4, torch.tensor([1, 2, 3]), 1.0)
    first, second = (add(zero([person, person], Weighting()), i, person, Weighting()) for i in range(2))
    expected = add(zero([person, person], Weighting()), 1, person, Weighting())

    first.merge(second)
    first.merge(second)

    same(second, expected)


# BatchNorm


def moments(data, images):
    """Population mean and variance, as BatchNorm would keep them with one batch and no Bessel correction."""
    values = {"mean": data.mean(0).float(), "var": data.var(0, correction=0).float(), "w": torch.zeros(2)}
    return NORM.pack(values), images, torch.tensor([0]), 0.0


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6), offset=st.floats(-150, 150), seed=st.integers(0, 99)
)
def test_second_moments_merge_to_the_pooled_statistics(sizes, offset, seed):
    rng = torch.Generator().manual_seed(seed)
    data = [
        torch.randn(n, 4, generator=rng, dtype=torch.float64)
        + offset
        + torch.randn(4, generator=rng, dtype=torch.float64)
        for n in sizes
    ]
    people = [moments(part, len(part)) for part in data]
    update = zero(people, Weighting(), NORM)
    for client, person in enumerate(people):
        add(update, client, person, Weighting())

    merged = update.mean(torch.zeros(NORM.size))

    pooled = torch.cat(data)
    torch.testing.assert_close(NORM.view(merged, "mean"), pooled.mean(0).float(), rtol=1e-6, atol=1e-6)
    # A float32 mean of 150 is off by up to 8e-6, and the variance by twice the offset times that.
    expected = pooled.var(0, correction=0).float()
    torch.testing.assert_close(NORM.view(merged, "var"), expected, rtol=1e-5, atol=1e-5 + 4e-5 * abs(offset) / 2)


def test_equal_statistics_merge_to_themselves():
    values = {"mean": torch.tensor([100.0, -3.0, 0.0, 1.5]), "var": torch.tensor([1.0, 0.25, 0.0, 4.0])}
    flat = NORM.pack({**values, "w": torch.zeros(2)})
    people = [(flat, 8, torch.tensor([0]), 0.0)] * 3
    update = zero(people, Weighting(), NORM)
    for client, person in enumerate(people):
        add(update, client, person, Weighting())

    merged = update.mean(torch.zeros(NORM.size))

    torch.testing.assert_close(NORM.view(merged, "var"), values["var"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(NORM.view(merged, "mean"), values["mean"], rtol=1e-6, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), people=clients(NORM, min_size=2, max_size=5))
def test_moments_merge_in_any_order_or_are_refused(data, people):
    """Means up to the limit have squares far beyond it; such a client must not spoil exactness."""
    forward, backward = zero(people, Weighting(), NORM), zero(people, Weighting(), NORM)
    order = data.draw(st.permutations(range(len(people))))

    def offer(update, client):
        try:
            add(update, client, people[client], Weighting())
        except ValueError as error:
            assert "BatchNorm" in str(error)  # noqa: PT017
            return False
        return True

    taken = {client: offer(forward, client) for client in range(len(people))}
    for client in order:
        assert offer(backward, client) == taken[client]

    same(forward, backward)


# Padding


def test_padding_never_shows():
    noise = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(3))
    clean = LAYOUT.pack(LAYOUT.unpack(noise))
    assert not torch.equal(noise, clean), "the layout has no padding to test"
    known = torch.tensor([2, 3, 1])
    means = []
    for flat in (noise, clean):
        person = (flat, 6, known, 0.0)
        update = add(zero([person], Weighting()), 0, person, Weighting())
        means.append(LAYOUT.unpack(update.mean(torch.zeros(LAYOUT.size))))

    for name in LAYOUT.names:
        assert torch.equal(means[0][name], means[1][name])


# --- further sums ------------------------------------------------------------------------


@st.composite
def clients_with_extras(draw):
    """Per client: floats ``[2, 3]``, int64 ``[2]`` and an int64 number, all or (a client without steps) none."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        floats = torch.tensor(draw(st.lists(numbers, min_size=6, max_size=6)), dtype=torch.float32).view(2, 3)
        whole = torch.tensor(draw(st.lists(st.integers(-COUNT_LIMIT, COUNT_LIMIT), min_size=2, max_size=2)))
        found.append({"gradient": floats, "counts": whole, "turns": torch.tensor(1)})
        if draw(st.booleans()):
            found[-1]["double"] = floats.double() / 3
    return found


def with_extras(people, chosen):
    update = Update.zero(LAYOUT, units_for(Weighting("uniform"), [1] * len(people), NUM_LABELS))
    for client in chosen:
        update.add_client(
            client,
            torch.zeros(LAYOUT.size),
            weighting=Weighting("uniform"),
            num_images=1,
            annotations=torch.zeros(NUM_LABELS, dtype=torch.int64),
            metrics={},
            extras=people[client],
        )
    return update


def extra_bits(update):
    return {name: (total.dtype, tuple(total.shape), total.numpy().tobytes()) for name, total in update.extras.items()}


@settings(max_examples=80, deadline=None)
@given(data=st.data(), people=clients_with_extras())
def test_extras_add_to_the_same_bits_in_any_order_and_grouping(data, people):
    expected = extra_bits(with_extras(people, range(len(people))))
    order = data.draw(st.permutations(range(len(people))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(people)), max_size=3)))
    edges = [0, *cuts, len(people)]
    groups = [with_extras(people, order[a:b]) for a, b in itertools.pairwise(edges)]
    data.draw(st.randoms()).shuffle(groups)

    total = Update.zero(LAYOUT, groups[0].units)
    for group in groups:
        total.merge(group)

    assert extra_bits(total) == expected


@settings(max_examples=60, deadline=None)
@given(people=clients_with_extras())
def test_extras_are_plain_sums(people):
    update = with_extras(people, range(len(people)))

    assert update.extra_sum("counts").tolist() == [sum(int(p["counts"][i]) for p in people) for i in range(2)]
    assert update.extra_sum("turns").tolist() == len(people)
    for name in {"gradient", "double"} & update.extras.keys():
        senders = [person[name] for person in people if name in person]
        exact = [sum(Fraction(float(p.flatten()[i])) for p in senders) for i in range(6)]
        # Every client is rounded once, to 2**-36 of the unit of clients.
        most = Fraction(update.units.clients) * len(senders) / 2 ** (QUANTUM_BITS + 1)
        got = update.extra_sum(name).flatten().tolist()
        assert all(abs(Fraction(g) - e) <= most for g, e in zip(got, exact, strict=True))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([math.nan]),
        torch.tensor([math.inf]),
        torch.tensor([-math.inf], dtype=torch.float64),
        torch.tensor([LIMIT * 1.01]),
        torch.tensor([COUNT_LIMIT + 1]),
        torch.tensor([-COUNT_LIMIT - 1]),
        torch.tensor([-(2**63)]),
        torch.tensor([True]),
        torch.tensor([1], dtype=torch.int32),
        torch.tensor([1j]),
    ],
    ids=str,
)
def test_extras_out_of_bounds_are_refused_and_the_sum_stays(tensor):
    good = {"a": torch.tensor([1.0]), "b": torch.tensor([3])}
    update = with_extras([good, {"b": torch.tensor([4]), "a": tensor}], [0])
    before = extra_bits(update), update.weight, list(update.clients)

    with pytest.raises((ValueError, RuntimeError)):
        with_more(update, {"b": torch.tensor([4]), "a": tensor})
    assert (extra_bits(update), update.weight, list(update.clients)) == before


def with_more(update, extras):
    update.add_client(
        9,
        torch.zeros(LAYOUT.size),
        weighting=Weighting("uniform"),
        num_images=1,
        annotations=torch.zeros(NUM_LABELS, dtype=torch.int64),
        metrics={},
        extras=extras,
    )


@pytest.mark.parametrize(
    "other", [torch.zeros(2), torch.zeros(1, 1), torch.zeros(()), torch.zeros(1, dtype=torch.int64)]
)
def test_one_name_has_one_shape_and_type(other):
    update = with_extras([{"a": torch.zeros(1)}, {}], [0])
    with pytest.raises(ValueError, match="the sum a"):
        with_more(update, {"a": other})
    with pytest.raises(ValueError, match="the sum a"):
        update.merge(with_extras([{"a": other}, {}], [0]))

    assert update.clients == [0]


def test_float16_and_bfloat16_extras_count_as_the_numbers_they_are():
    values = torch.tensor([0.1, 1.0, -3.0])
    update = with_extras([{"a": values.half()}, {"a": values.bfloat16()}], [0, 1])

    assert torch.allclose(update.extra_sum("a"), values.half().double() + values.bfloat16().double(), atol=1e-9)


def test_an_extra_that_nobody_sent_is_a_missing_key():
    with pytest.raises(KeyError):
        with_extras([{}], [0]).extra_sum("a")


def test_what_a_client_sends_is_not_changed_and_may_change_later():
    sent = {"a": torch.ones(3), "b": torch.ones(3, dtype=torch.int64)}
    update = with_extras([sent], [0])
    total = Update.zero(LAYOUT, update.units)
    total.merge(update)
    for tensor in sent.values():
        assert tensor.eq(1).all()
        tensor.fill_(7)
    for tensor in update.extras.values():
        tensor.zero_()

    assert total.extra_sum("a").tolist() == [1, 1, 1]
    assert total.extra_sum("b").tolist() == [1, 1, 1]

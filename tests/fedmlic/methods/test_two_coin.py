"""two_coin: a step by hand, planted annotators of several clients, a joint estimation, leave to count."""

import numpy as np
import pytest
import torch

from fedmlic.annotation.two_coin import LARGEST_SUM, START, Rates, Sums
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.methods.two_coin import SUMS, UNIT, forward_costs, judged, posterior_costs, row_of, start_rates
from fedmlic.protocol import ROUND_SUMS
from strategies.server.check import check_experiment

PLANTED = [([0.3, 0.6], [0.1, 0.02]), ([0.05, 0.1], [0.3, 0.0])]
"""Miss and spurious rates per label of two annotators."""


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def test_a_step_by_hand():
    """Rates start at 0.1: of q = 0.5 a present entry has mu = 0.9, an absent one 0.1; unknown entries have no say."""
    labels = column(PRESENT, PRESENT, ABSENT, UNKNOWN, UNCERTAIN, dtype=torch.int8)

    found = judged(labels, column(0.5, 0.5, 0.5, 0.5, 0.2), None, strength=0.0, steps=1)

    # m = 0.1 / (0.9 + 0.9 + 0.1), s = (0.1 + 0.1) / (0.1 + 0.1 + 0.9)
    assert found.rates.miss.tolist() == pytest.approx([0.1 / 1.9])
    assert found.rates.spurious.tolist() == pytest.approx([0.2 / 1.1])
    there = (1 - 0.1 / 1.9) / (1 - 0.1 / 1.9 + 0.2 / 1.1)
    assert found.probs[:2, 0].tolist() == pytest.approx([there, there])
    assert found.probs[3:, 0].tolist() == pytest.approx([0.5, 0.2])
    assert float(found.sums.present) == pytest.approx(2 * there + float(found.probs[2, 0]))


def test_all_clients_count_as_entries_of_a_strength():
    """Own sums under START plus 10 entries of each kind at the row's rates 0.5 and 0.2."""
    row = Sums(*(torch.tensor([[value]]) for value in (50.0, 100.0, 20.0, 100.0)))
    labels, taught = column(PRESENT, ABSENT, dtype=torch.int8), column(1.0, 0.0)

    found = judged(labels, taught, row, strength=10.0, steps=1)

    assert found.rates.miss.tolist() == pytest.approx([(0 + 5) / (1 + 10)])
    assert found.rates.spurious.tolist() == pytest.approx([(0 + 2) / (1 + 10)])


def test_rows_without_entries_start_again_and_rates_leave_something():
    nothing = Sums(*(torch.zeros(1, 1) for _ in range(4)))
    blind = Sums(*(torch.tensor([[value]]) for value in (99.0, 100.0, 50.0, 100.0)))

    assert start_rates(1, nothing).miss.tolist() == [[START]]
    assert float(sum(start_rates(1, blind))) == pytest.approx(LARGEST_SUM)


def rows(*values):
    return Sums(*(torch.tensor([[value]], dtype=torch.float64) for value in values))


PAIRS = {
    # Rates of the row 0.5 and START: mu = 5/6 where present and 5/14 where absent is written down.
    "named": ((50.0, 100.0, 0.0, 2000.0), (5 / 6, 5 / 14), (0.5, None)),
    "absent": ((50.0, 100.0, 30.0, 0.0), (5 / 6, 5 / 14), (0.5, None)),
    # START and 0.2: 9/11 and 1/9.
    "missed": ((0.0, 2000.0, 20.0, 100.0), (9 / 11, 1 / 9), (None, 0.2)),
    "present": ((30.0, 0.0, 20.0, 100.0), (9 / 11, 1 / 9), (None, 0.2)),
}
"""By what is withheld: a row, mu of a present and of an absent entry of q = 0.5, and the rates that the row tells."""


@pytest.mark.parametrize("strength", [10.0, None])
@pytest.mark.parametrize("withheld", PAIRS)
def test_of_two_sums_one_of_which_is_withheld_neither_counts(withheld, strength):
    """The rate is then of the client's own sums, as where both are withheld, and so it is not stuck at 0."""
    row, (said, silent), told = PAIRS[withheld]
    own = [(silent, said + silent), (1 - said, 2 - said - silent)]
    expected = []
    for (errors, entries), rate in zip(own, told, strict=True):
        if rate is None:
            expected.append(errors / entries)
        elif strength is None:
            expected.append(rate)
        else:
            expected.append((errors + strength * rate) / (entries + strength))

    labels = column(PRESENT, ABSENT, dtype=torch.int8)
    found = judged(labels, column(0.5, 0.5), rows(*row), strength=strength, steps=1)

    assert [float(rate) for rate in found.rates] == pytest.approx(expected)


def test_a_rate_that_starts_again_leaves_something_beside_a_large_one():
    """Without a bound 0.95 and START would be more than 1."""
    assert float(sum(start_rates(1, rows(99.0, 100.0, 0.0, 2000.0)))) == pytest.approx(LARGEST_SUM)


@pytest.mark.parametrize("state", [PRESENT, ABSENT, UNKNOWN])
@pytest.mark.parametrize("strength", [0.0, 20.0, None])
def test_one_sided_single_and_empty_clients_have_rates(state, strength):
    for count in (0, 1, 5):
        labels = torch.full((count, 2), state, dtype=torch.int8)
        found = judged(labels, torch.full((count, 2), 0.5), None, strength=strength, steps=3)
        assert all(rate.isfinite().all() and (rate >= 0).all() for rate in found.rates)
        assert found.probs.isfinite().all()


def federation(num_clients=6, num_images=1500, seed=0):
    """Clients' labels by two annotators in turn, the truth, and which of 40 kinds of image every image is of."""
    rng = np.random.default_rng(seed)
    presence = np.where(rng.random((40, 2)) < 0.4, 0.98, 0.02)
    for client in range(num_clients):
        kinds = rng.integers(0, 40, num_images)
        truth = rng.random((num_images, 2)) < presence[kinds]
        miss, spurious = (np.array(rate) for rate in PLANTED[client % 2])
        written = rng.random(truth.shape) < np.where(truth, 1 - miss, spurious)
        labels = torch.from_numpy(np.where(written, PRESENT, ABSENT).astype(np.int8))
        yield labels, truth, kinds, torch.from_numpy(presence[kinds])


def told(found, client, annotators):
    sums = torch.zeros(4, annotators, found.probs.shape[1], dtype=torch.float64)
    sums[:, client % annotators] = torch.stack([each[0] for each in found.sums]) / UNIT
    return sums


def assert_planted(rates, truth, annotator, allowed=0.0):
    for estimate, planted, entries in zip(rates, PLANTED[annotator], (truth.sum(0), (~truth).sum(0)), strict=True):
        sigma = np.sqrt(np.array(planted) * (1 - np.array(planted)) / entries)
        assert (np.abs(estimate.numpy() - planted) <= 3 * sigma + allowed).all(), (estimate, planted)


def test_annotators_of_several_clients_are_within_three_sigma():
    """Rates of the sums of all clients of an annotator; one of its clients alone has three times as few images."""
    clients, shared = list(federation()), {}
    for _ in range(8):
        found = [
            judged(labels, q, row_of(shared, k % 2), strength=None, steps=1)
            for k, (labels, _, _, q) in enumerate(clients)
        ]
        shared = {ROUND_SUMS + SUMS: sum(told(each, k, 2) for k, each in enumerate(found))}

    for annotator in (0, 1):
        truth = np.concatenate([clients[k][1] for k in range(annotator, 6, 2)])
        assert_planted(found[annotator].rates, truth, annotator, allowed=1e-3)


def test_with_a_model_that_learns_beside_them_rates_are_right_from_one_annotator_to_the_other():
    """The model is a table of kinds of images, refitted to all clients' mu in every round; it starts from the labels.

    How much of what is written depends on the truth, 1 - m - s, is told of one annotator in parts of the other's.
    """
    clients, shared = list(federation()), {}
    kinds = np.concatenate([kinds for _, _, kinds, _ in clients])
    mu = torch.cat([(labels == PRESENT).double() for labels, *_ in clients])
    for _ in range(30):
        table = torch.stack([mu[torch.from_numpy(kinds == kind)].mean(dim=0) for kind in range(40)])
        found = [
            judged(labels, table[torch.from_numpy(own)], row_of(shared, k % 2), strength=None, steps=1)
            for k, (labels, _, own, _) in enumerate(clients)
        ]
        shared = {ROUND_SUMS + SUMS: sum(told(each, k, 2) for k, each in enumerate(found))}
        mu = torch.cat([each.probs for each in found])

    slopes = [1 - found[k].rates.miss.numpy() - found[k].rates.spurious.numpy() for k in (0, 1)]
    planted = [1 - np.array(miss) - np.array(spurious) for miss, spurious in PLANTED]
    squares = 0.0
    for annotator, slope in enumerate(planted):
        truth = np.concatenate([clients[k][1] for k in range(annotator, 6, 2)])
        for rate, entries in zip(PLANTED[annotator], (truth.sum(0), (~truth).sum(0)), strict=True):
            squares = squares + np.array(rate) * (1 - np.array(rate)) / entries / slope**2
    ratio = planted[0] / planted[1]
    assert (np.abs(slopes[0] / slopes[1] - ratio) <= 3 * ratio * np.sqrt(squares)).all()


def test_losses_are_cross_entropy_where_nobody_errs_and_leave_unknown_entries_out():
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    labels = torch.tensor([[PRESENT, ABSENT, UNKNOWN]], dtype=torch.int8)
    expected = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(-2.0)), 0.0]
    nothing = Rates(torch.zeros(3), torch.zeros(3))

    assert forward_costs(logits, labels, nothing)[0].tolist() == pytest.approx(expected)
    assert posterior_costs(logits, (labels == PRESENT).double(), labels)[0].tolist() == pytest.approx(expected)
    half = posterior_costs(logits, torch.full((1, 3), 0.5), labels)[0]
    assert half.tolist() == pytest.approx([np.log1p(np.exp(-1.0)) + 0.5, np.log1p(np.exp(-2.0)) + 1.0, 0.0])


def test_sums_need_leave(tiny):
    with pytest.raises(InputError, match="allow-statistics=true"):
        check_experiment(*tiny(method="two_coin()"))
    check_experiment(*tiny(method="two_coin()", allow_statistics=True, statistics_min_clients=4))

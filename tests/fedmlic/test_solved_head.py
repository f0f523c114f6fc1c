"""The solved head against scikit-learn on the pooled known entries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedmlic import solved_head
from fedmlic.errors import InputError
from fedmlic.labels import UNCERTAIN, UNKNOWN
from fedmlic.protocol import STATISTICS
from fedmlic.solved_head import HeadSums, SolvedHead, pooled_features, ridge_head


def clients(seed, num_clients=3, num_labels=3, num_features=5, known=0.6):
    """Features and labels of some clients of different sizes and means, labels partly unknown."""
    rng = np.random.default_rng(seed)
    found = []
    for client in range(num_clients):
        size = int(rng.integers(1, 12)) + (8 if client == 0 else 0)
        features = rng.normal(client, 1 + client, (size, num_features)).astype(np.float32)
        labels = (features[:, :num_labels] + rng.normal(0, 1, (size, num_labels)) > client).astype(np.int8)
        labels[rng.random(labels.shape) > known] = UNKNOWN
        found.append((torch.from_numpy(features), torch.from_numpy(labels)))
    return found


def summed(parts, *, shared=False):
    total = HeadSums.zero(parts[0][1].shape[1], parts[0][0].shape[1], shared=shared)
    for features, labels in parts:
        total = total + HeadSums.of(features, labels, shared=shared)
    return total


def pooled(parts):
    return torch.cat([each for each, _ in parts]).double().numpy(), torch.cat([each for _, each in parts]).numpy()


def expected(parts, label, alpha, *, standardise, balanced):
    """Weights and bias of scikit-learn's ridge on the entries that are known, in the space of the features."""
    features, labels = pooled(parts)
    rows = labels[:, label] >= 0
    x, present = features[rows], labels[rows, label] == 1
    high, low = 1.0, -1.0
    if balanced and 0 < present.sum() < len(present):
        high, low = len(present) / (2 * present.sum()), -len(present) / (2 * (~present).sum())
    model = make_pipeline(StandardScaler(with_std=standardise), Ridge(alpha=alpha))
    model.fit(x, np.where(present, high, low))
    bias = model.predict(np.zeros((1, x.shape[1])))[0]
    return model.predict(np.eye(x.shape[1])) - bias, bias


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), alpha=st.sampled_from([0.01, 1.0, 30.0]), flags=st.tuples(st.booleans(), st.booleans())
)
def test_the_solution_is_scikit_learns_on_the_pooled_known_entries(seed, alpha, flags):
    standardise, balanced = flags
    parts = clients(seed)
    sums = summed(parts)

    weights, biases = ridge_head(sums, alpha, standardise=standardise, balanced=balanced)

    for label in torch.nonzero(sums.known > 1).flatten().tolist():
        wanted, bias = expected(parts, label, alpha, standardise=standardise, balanced=balanced)
        np.testing.assert_allclose(weights[label].numpy(), wanted, rtol=1e-6, atol=1e-7)
        assert float(biases[label]) == pytest.approx(bias, rel=1e-6, abs=1e-7)


def test_one_matrix_for_all_labels_is_exact_where_all_labels_are_known():
    parts = clients(5, known=1.0)

    own = ridge_head(summed(parts), 1.0, standardise=True, balanced=False)
    one = ridge_head(summed(parts, shared=True), 1.0, standardise=True, balanced=False)

    for here, there in zip(own, one, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


def test_one_matrix_for_all_labels_takes_spread_from_all_images_and_means_from_known_ones():
    """By hand: G = n (M / N - m m^T), right side and bias from the label's own known images."""
    parts = clients(7)
    features, labels = pooled(parts)
    weights, biases = ridge_head(summed(parts, shared=True), 2.0, standardise=False, balanced=False)

    for label in range(labels.shape[1]):
        rows = labels[:, label] >= 0
        targets = np.where(labels[rows, label] == 1, 1.0, -1.0)
        spread = rows.sum() * np.cov(features.T, bias=True)
        centred = features[rows] - features[rows].mean(axis=0)
        wanted = np.linalg.solve(spread + 2 * np.eye(len(spread)), centred.T @ (targets - targets.mean()))
        np.testing.assert_allclose(weights[label].numpy(), wanted, rtol=1e-7, atol=1e-9)
        assert float(biases[label]) == pytest.approx(targets.mean() - wanted @ features[rows].mean(axis=0))


def test_the_split_over_clients_does_not_matter_and_sums_commute():
    parts = clients(2)
    features, labels = (torch.from_numpy(each) for each in pooled(parts))

    whole, apart = HeadSums.of(features, labels, shared=False), summed(parts[::-1])

    for here, there in zip(whole, apart, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-9)


def test_uncertain_is_unknown_and_labels_without_two_states_are_constant():
    features = torch.randn(6, 3)
    labels = torch.tensor([[1, -1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, -1], [1, -1, 0, 0], [1, 0, 0, 1]])
    labels = torch.cat([labels, torch.full((6, 1), UNKNOWN)], dim=1).to(torch.int8)
    doubtful = torch.where(labels == UNKNOWN, UNCERTAIN, labels).to(torch.int8)

    found, again = (
        ridge_head(HeadSums.of(features, each, shared=False), 1.0, standardise=True, balanced=True)
        for each in (labels, doubtful)
    )

    assert all(torch.equal(here, there) for here, there in zip(found, again, strict=True))
    assert found[0][[0, 2, 4]].abs().max() < 1e-12
    torch.testing.assert_close(found[1][[0, 2, 4]], torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))


def test_balanced_targets_change_a_label_by_a_factor_and_its_bias():
    sums = summed(clients(3))
    plain, even = (ridge_head(sums, 1.0, standardise=False, balanced=each)[0] for each in (False, True))

    torch.testing.assert_close(torch.nn.functional.normalize(plain, dim=1), torch.nn.functional.normalize(even, dim=1))
    assert not torch.allclose(plain, even)


def test_a_constant_feature_and_large_means_do_no_harm():
    features = torch.cat([torch.randn(40, 3) * 0.1 + 50, torch.full((40, 1), 7.0)], dim=1)
    labels = (features[:, :2] > 50).to(torch.int8)
    parts = [(features, labels)]

    weights, _ = ridge_head(summed(parts), 1.0, standardise=True, balanced=False)

    for label in range(2):
        wanted, _ = expected(parts, label, 1.0, standardise=True, balanced=False)
        np.testing.assert_allclose(weights[label, :3].numpy(), wanted[:3], rtol=1e-6)
    assert weights[:, 3].abs().max() < 1e-6


class Network(torch.nn.Module):
    def __init__(self, num_features=4, num_labels=3):
        super().__init__()
        self.head = torch.nn.Linear(num_features, num_labels)


def test_which_moments_are_added_up_follows_from_the_counts():
    head = SolvedHead(pooled_features)
    known, images = (torch.tensor(each) for each in ([9, 9, 9], [9]))
    complete = {STATISTICS + "labels/known": known, STATISTICS + "labels/images": images}
    partly = {**complete, STATISTICS + "labels/known": torch.tensor([9, 9, 0])}

    rows = [len(head.zeros(Network(), shared)["second"]) for shared in (complete, partly, {})]

    assert rows == [1, 3, 3]
    assert SolvedHead(pooled_features, gram="label").counts is None
    assert SolvedHead(pooled_features, gram="shared").is_shared({})


def test_moments_that_are_too_large_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(solved_head, "MOST_NUMBERS", 29)
    network = Network()

    with pytest.raises(InputError, match=r"at most 29 numbers, got 30: 4 features for each of 3 labels.*gram='shared'"):
        SolvedHead(pooled_features).zeros(network, {})
    assert SolvedHead(pooled_features, gram="shared").zeros(network, {})["second"].shape == (1, 10)


NEEDED = {False: ("known", "present", "first", "first-present", "second"), True: ("known", "present", "first-present")}
"""Sums of which a label's own row may be withheld, without and with one second moment for all labels."""


@pytest.mark.parametrize(("shared", "name"), [(shared, name) for shared, names in NEEDED.items() for name in names])
def test_a_label_of_which_a_row_is_withheld_keeps_its_own_bit_for_bit(shared, name):
    parts = clients(11, num_features=4, known=1.0)
    sums = {key: each.clone() for key, each in summed(parts, shared=shared).to_tensors().items()}
    sums[name][1] = 0  # as the server gives it
    network, solver = Network(), SolvedHead(pooled_features, alpha=2.0)
    before = {key: each.detach().clone() for key, each in network.state_dict().items()}

    after = solver.solve(network, sums, before)

    assert torch.equal(after["head.weight"][1].float(), before["head.weight"][1])
    assert torch.equal(after["head.bias"][1].float(), before["head.bias"][1])
    for label in (0, 2):
        wanted, bias = expected(parts, label, 2.0, standardise=True, balanced=False)
        np.testing.assert_allclose(after["head.weight"][label].numpy(), wanted, rtol=1e-6, atol=1e-7)
        assert float(after["head.bias"][label]) == pytest.approx(bias, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["images", "first-all", "second"])
def test_without_the_sums_of_all_images_no_row_changes(name):
    sums = {key: each.clone() for key, each in summed(clients(4, num_features=4), shared=True).to_tensors().items()}
    sums[name].zero_()
    network = Network()

    after = SolvedHead(pooled_features).solve(network, sums, network.state_dict())

    assert torch.equal(after["head.weight"].float(), network.head.weight)
    assert torch.equal(after["head.bias"].float(), network.head.bias)


def test_a_label_that_is_present_nowhere_keeps_its_row_and_one_that_is_everywhere_is_constant():
    features = torch.rand(8, 4)
    labels = torch.zeros(8, 3, dtype=torch.int8)
    labels[:, 1], labels[:3, 2] = 1, 1
    network = Network()
    sums = HeadSums.of(features, labels, shared=False).to_tensors()

    after = SolvedHead(pooled_features).solve(network, sums, network.state_dict())

    assert torch.equal(after["head.weight"][0].float(), network.head.weight[0])
    assert torch.equal(after["head.bias"][0].float(), network.head.bias[0])
    assert after["head.weight"][1].abs().max() < 1e-12
    assert float(after["head.bias"][1]) == pytest.approx(1.0)
    assert not torch.equal(after["head.bias"][2].float(), network.head.bias[2])

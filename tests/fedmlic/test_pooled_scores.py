"""Scores by regressions of all clients' images, against scikit-learn on the pooled images."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score

from fedmlic.labels import UNKNOWN
from fedmlic.pooled_scores import fit_sums, fit_zeros, judged, regressions_of

ALPHA, LABELS, FEATURES, CANDIDATES = 2.0, 3, 6, 5


def clients(known, sizes=(9, 14, 21)):
    rng = np.random.default_rng(0)
    found = []
    for count in sizes:
        features = rng.normal(2, 3, (count, 2, FEATURES))
        labels = (features[:, 0, :LABELS] + rng.normal(0, 2, (count, LABELS)) > 2).astype(np.int8)
        labels[rng.random(labels.shape) > known] = UNKNOWN
        found.append((features, labels))
    return found


def added(data, shared):
    total = fit_zeros(LABELS, FEATURES, CANDIDATES, shared=shared)
    for features, labels in data:
        own = fit_sums(torch.from_numpy(features), torch.from_numpy(labels), CANDIDATES, shared=shared)
        assert {name: (t.shape, t.dtype) for name, t in own.items()} == {
            name: (t.shape, t.dtype) for name, t in total.items()
        }
        total = {name: total[name] + own[name] for name in total}
    return total


@pytest.mark.parametrize(("known", "shared"), [(1.0, True), (1.0, False), (0.7, False)])
def test_scores_are_those_of_a_loop_over_clients_with_scikit_learn_on_the_pooled_halves(known, shared):
    data = clients(known)

    regressions = regressions_of(added(data, shared), ALPHA)

    assert regressions.shape == (2, CANDIDATES, LABELS, FEATURES + 1)
    assert not regressions[:, 2:].any()  # two candidates of five
    for candidate in range(2):
        wanted, positives = np.zeros(LABELS), np.zeros(LABELS, dtype=np.int64)
        for label in range(LABELS):
            for half in range(2):
                x = np.concatenate([features[1 - half :: 2, candidate] for features, _ in data])
                y = np.concatenate([labels[1 - half :: 2, label] for _, labels in data])
                x, y = x[y >= 0], y[y >= 0]
                scale = x.std(axis=0)
                model = Ridge(alpha=ALPHA).fit(x / scale, y)
                for features, labels in data:
                    own, truth = features[half::2, candidate], labels[half::2, label]
                    own, truth = own[truth >= 0], truth[truth >= 0]
                    if 0 < truth.sum() < len(truth):
                        wanted[label] += average_precision_score(truth, model.predict(own / scale)) * truth.sum()
                        positives[label] += truth.sum()
        found = [judged(features[:, candidate], labels, regressions[:, candidate].numpy()) for features, labels in data]
        np.testing.assert_allclose(sum(each.precision for each in found), wanted, rtol=1e-12)
        assert sum(each.positives for each in found).tolist() == positives.tolist()
        assert positives.min() > 5


def test_labels_without_a_regression_in_one_half_are_judged_in_that_half_alone():
    data = clients(1.0)
    sums = added(data, False)
    sums["search/half-0/first-present"][0] = 0  # withheld
    sums["search/half-1/present"][1] = sums["search/half-1/known"][1]  # never absent

    regressions = regressions_of(sums, ALPHA)

    judgeable = regressions[:, 0].any(dim=2)
    assert judgeable.tolist() == [[False, True, True], [True, False, True]]
    features, labels = data[2]
    whole = judged(features[:, 0], labels, regressions_of(added(data, False), ALPHA)[:, 0].numpy())
    part = judged(features[:, 0], labels, regressions[:, 0].numpy())
    assert part.positives[0] == labels[0::2, 0].sum() < whole.positives[0]  # half 0 is judged by half 1's
    assert part.positives[1] == labels[1::2, 1].sum() < whole.positives[1]
    assert part.positives[2] == whole.positives[2]
    np.testing.assert_allclose(part.precision[2], whole.precision[2], rtol=1e-12)

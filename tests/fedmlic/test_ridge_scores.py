"""Scores of features against scikit-learn."""

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedmlic.labels import UNCERTAIN, UNKNOWN
from fedmlic.ridge_scores import cross_scores, dual_ridge


def data(known=1.0, num_images=40, num_features=6):
    rng = np.random.default_rng(0)
    features = rng.normal(2, 3, (num_images, num_features))
    labels = (features[:, :3] + rng.normal(0, 2, (num_images, 3)) > 2).astype(np.int8)
    labels[rng.random(labels.shape) > known] = UNKNOWN
    return features, labels


def test_cross_scores_are_scikit_learns():
    features, labels = data()
    found = cross_scores(features, labels, 2.0)

    for label in range(3):
        wanted, positives = 0.0, 0
        for fit in (0, 1):
            model = make_pipeline(StandardScaler(), Ridge(alpha=2.0)).fit(features[fit::2], labels[fit::2, label])
            there = labels[1 - fit :: 2, label]
            # Targets 0 and 1 in place of -1 and 1 change no ranking.
            wanted += average_precision_score(there, model.predict(features[1 - fit :: 2])) * there.sum()
            positives += there.sum()
        np.testing.assert_allclose(found.precision[label], wanted, rtol=1e-12)
        assert found.positives[label] == positives


def test_unknown_entries_are_left_out_of_fit_and_judgement():
    features, labels = data(known=0.7)
    scores, usable = dual_ridge(features[:30], labels[:30], features[30:], 1.0)

    # All images scale the features; a label's known ones centre them and are fitted.
    scale = features[:30].std(axis=0)
    for label in range(3):
        rows = labels[:30, label] >= 0
        model = Ridge(alpha=1.0).fit(features[:30][rows] / scale, labels[:30][rows, label] * 2.0 - 1)
        wanted = 1 / (1 + np.exp(-model.predict(features[30:] / scale)))
        np.testing.assert_allclose(scores[:, label], wanted, rtol=1e-9)
    assert usable.all()
    doubtful = np.where(labels == UNKNOWN, np.int8(UNCERTAIN), labels)
    again = cross_scores(features, doubtful, 1.0)
    np.testing.assert_array_equal(again.precision, cross_scores(features, labels, 1.0).precision)


def test_what_cannot_be_judged_counts_nothing():
    features, labels = data()
    labels[:, 0], labels[:, 1] = 1, UNKNOWN

    found = cross_scores(features, labels, 1.0)

    assert found.positives[:2].tolist() == [0, 0]
    assert found.precision[:2].tolist() == [0.0, 0.0]
    assert found.positives[2] > 0
    for few in (1, 2):
        assert cross_scores(features[:few], labels[:few], 1.0).positives.sum() == 0

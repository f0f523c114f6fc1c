"""The server's evaluation is the metrics of its own splits, nothing else."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from fedmlic.evaluation import Evaluator
from fedmlic.metrics import evaluate
from strategies.server.server import build_server


@pytest.fixture(scope="module")
def server(tiny):
    return build_server(*tiny())


def scores_of(server, split):
    rows = server.corpus.splits[split]
    found = np.arange(rows.start, rows.stop)
    return server.learner.predict(server.corpus.images, found), server.corpus.labels.take(found)


def test_values_are_the_metrics_of_the_model_given_on_each_split(server):
    evaluator = Evaluator(server.learner, server.corpus, 0.5)
    flat = server.learner.resident.flat + 0.05 * torch.randn(
        server.learner.resident.layout.size, generator=torch.Generator().manual_seed(1)
    )

    found = evaluator.score(flat)

    server.learner.resident.load(flat)
    for split, side in (("test", "server"), ("val", "server/val")):
        scores, labels = scores_of(server, split)
        expected = evaluate(scores, labels, threshold=0.5)
        for name, value in expected.flat().items():
            assert found.values[f"{side}/{name}"] == pytest.approx(value, nan_ok=True)
        by_label = [average_precision_score(labels[:, k], scores[:, k]) for k in range(10) if labels[:, k].any()]
        assert found.values[f"{side}/mAP"] == pytest.approx(np.mean(by_label))
        assert found.splits[split].num_evaluable == len(by_label)


def test_training_images_are_never_scored(server):
    evaluator = Evaluator(server.learner, server.corpus, 0.5)

    found = evaluator.score(server.learner.resident.flat.clone())

    assert set(evaluator.splits) == {"val", "test"}
    assert set(found.splits) == {"val", "test"}
    assert not any("train" in name for name in found.values)


def test_a_model_is_scored_the_same_whatever_was_loaded_before(server):
    evaluator = Evaluator(server.learner, server.corpus, 0.5)
    flat = server.learner.resident.flat.clone()
    expected = evaluator.score(flat).values
    evaluator.score(flat * -3)

    assert expected == pytest.approx(evaluator.score(flat).values, nan_ok=True)


def test_the_threshold_moves_decisions_and_not_rankings(server):
    flat = server.learner.resident.flat.clone()
    low, high = (Evaluator(server.learner, server.corpus, limit).score(flat).values for limit in (0.0, 1.0))

    assert low["server/mAP"] == high["server/mAP"]
    assert low["server/CR"] == 1
    assert high["server/CR"] == 0


def test_splits_without_images_are_left_out(tiny):
    dataset = "multidigits(num_train=240, num_val=0, num_test=0, image_size=24, num_owners=12)"
    server = build_server(*tiny(dataset=dataset))

    found = Evaluator(server.learner, server.corpus, 0.5).score(server.learner.resident.flat.clone())

    assert found.values == {}
    assert found.splits == {}


def test_labels_that_nobody_annotates_are_apart_on_both_splits(server):
    evaluator = Evaluator(server.learner, server.corpus, 0.5)
    flat = server.learner.resident.flat.clone()
    names = server.corpus.label_names

    found, whole = evaluator.score(flat, (names[2], names[5])), evaluator.score(flat)

    rest = [label for label in range(10) if label not in {2, 5}]
    for split, side in (("test", "server"), ("val", "server/val")):
        ap = whole.splits[split].per_label.ap
        np.testing.assert_array_equal(found.splits[split].per_label.ap, ap)
        assert found.values[f"{side}/mAP"] == pytest.approx(np.nanmean(ap[rest]))
        assert found.values[f"{side}/mAP/unannotated"] == pytest.approx(np.nanmean(ap[[2, 5]]))
        assert found.values[f"{side}/num-labels/unannotated"] == 2
    assert not any("unannotated" in name for name in whole.values)

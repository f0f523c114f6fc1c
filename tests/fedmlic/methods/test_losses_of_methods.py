"""The losses of bce, assume_negative, balanced_bce and asl, by hand and by loop."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedmlic import spec
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.methods import asl, assume_negative, balanced_bce, bce
from fedmlic.training import classifier

LOG3 = math.log(3.0)
LOGITS = torch.tensor([[LOG3, LOG3, LOG3, LOG3], [-LOG3, -LOG3, 0.0, 5.0]])
LABELS = torch.tensor([[PRESENT, ABSENT, UNKNOWN, UNCERTAIN], [ABSENT, PRESENT, ABSENT, UNKNOWN]], dtype=torch.int8)
SURE, WRONG, EVEN = math.log(4 / 3), math.log(4), math.log(2)
"""The log-loss at probability 3/4, 1/4 and 1/2 of the truth."""


def loss_of(monkeypatch, module, name, **arguments):
    """The loss that the factory hands to ``classifier``."""
    caught = []
    made = classifier(lambda logits, labels: logits.sum() * labels.sum())
    monkeypatch.setattr(module, "classifier", lambda loss, **kwargs: (caught.append((loss, kwargs)), made)[1])
    getattr(module, name)(**arguments)
    return caught[0]


def test_bce_is_the_mean_over_known_entries(monkeypatch):
    loss, settings = loss_of(monkeypatch, bce, "bce", pool="max")

    assert loss(LOGITS, LABELS).item() == pytest.approx((2 * SURE + 2 * WRONG + EVEN) / 5, rel=1e-6)
    assert settings == {"pool": "max", "hidden": ()}


def test_assume_negative_is_torchs_loss_against_present(monkeypatch):
    loss, _ = loss_of(monkeypatch, assume_negative, "assume_negative")

    expected = F.binary_cross_entropy_with_logits(LOGITS, (LABELS == PRESENT).float())
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)


def test_balanced_bce_averages_present_and_absent_apart(monkeypatch):
    loss, _ = loss_of(monkeypatch, balanced_bce, "balanced_bce")

    assert loss(LOGITS, LABELS).item() == pytest.approx((SURE + WRONG) / 2 + (WRONG + SURE + EVEN) / 3, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("exponents", [(1.0, 4.0, 0.05), (0.0, 4.0, 0.05), (0.0, 0.0, 0.0), (2.0, 1.0, 0.3)])
def test_asl_by_loop(monkeypatch, reduction, exponents):
    gamma_pos, gamma_neg, margin = exponents
    loss, _ = loss_of(
        monkeypatch, asl, "asl", gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin, reduction=reduction
    )

    terms = []
    for z, y in zip(LOGITS.flatten().tolist(), LABELS.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        if y == PRESENT:
            terms.append(-((1 - p) ** gamma_pos) * math.log(p))
        elif y == ABSENT:
            q = max(p - margin, 0.0)
            terms.append(-(q**gamma_neg) * math.log(1 - q))
    expected = sum(terms) / (len(terms) if reduction == "mean" else 1)
    assert loss(LOGITS, LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_asl_defaults_are_the_authors_class(monkeypatch):
    default, _ = loss_of(monkeypatch, asl, "asl")
    spelled, _ = loss_of(monkeypatch, asl, "asl", gamma_pos=1.0, gamma_neg=4.0, margin=0.05)

    assert default(LOGITS, LABELS).item() == spelled(LOGITS, LABELS).item()


@pytest.mark.parametrize(
    ("module", "name"), [(bce, "bce"), (balanced_bce, "balanced_bce"), (asl, "asl")], ids=["bce", "balanced_bce", "asl"]
)
def test_a_batch_without_annotations_costs_and_teaches_nothing(monkeypatch, module, name):
    loss, _ = loss_of(monkeypatch, module, name)
    logits = LOGITS.clone().requires_grad_()

    value = loss(logits, torch.full_like(LABELS, UNKNOWN))
    value.backward()

    assert value.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", ["bce", "assume_negative", "balanced_bce", "asl"])
def test_the_classifier_predicts_by_sigmoid(name):
    method = spec.build("method", f"{name}(pool='logsumexp')")
    network = torch.nn.Identity()

    probs = method.predict(network, LOGITS)

    np.testing.assert_allclose(probs.numpy(), 1 / (1 + np.exp(-LOGITS.numpy())), rtol=1e-6)

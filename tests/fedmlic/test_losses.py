"""Losses against torch's own, torchvision's focal loss and a plain float64 loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.losses import (
    asymmetric,
    balanced_mean,
    binary_cross_entropy,
    known_mean,
    masked_mean,
    masked_sum,
    mean_binary_cross_entropy,
)

STATES = [PRESENT, ABSENT, UNKNOWN, UNCERTAIN]
EXTREME = [0.0, -0.0, 1e-30, 20.0, -20.0, 80.0, -80.0, 104.0, -104.0, 1000.0, -1000.0, 1e30, -1e30]


def labels_like(values):
    return torch.tensor(values, dtype=torch.int8)


def batch(seed=0, shape=(7, 5), scale=4.0):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=rng, dtype=torch.float64) * scale
    return logits, torch.randint(-2, 2, shape, generator=rng, dtype=torch.int8)


def plain_asymmetric(logit, label, gamma_pos, gamma_neg, margin):
    """The definition, in Python's float64, for logits of moderate size."""
    p = 1 / (1 + math.exp(-logit))
    if label == PRESENT:
        return -((1 - p) ** gamma_pos) * math.log(p)
    if label == ABSENT:
        q = max(p - margin, 0.0)
        return -(q**gamma_neg) * math.log(1 - q)
    return 0.0


def test_binary_cross_entropy_equals_torch_on_known_entries():
    logits, labels = batch()

    loss = binary_cross_entropy(logits, labels)

    known = labels >= 0
    reference = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).double(), reduction="none")
    torch.testing.assert_close(loss[known], reference[known], rtol=1e-12, atol=1e-12)
    assert (loss[~known] == 0).all()


def test_binary_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), math.log(3.0), 9.0, -9.0]])

    loss = binary_cross_entropy(logits, labels_like([[PRESENT, ABSENT, UNKNOWN, UNCERTAIN]]))

    torch.testing.assert_close(loss, torch.tensor([[math.log(4 / 3), math.log(4.0), 0.0, 0.0]]))


@pytest.mark.parametrize("gamma_pos", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
def test_asymmetric_equals_the_plain_loop(gamma_pos, gamma_neg, margin):
    logits, labels = batch()

    loss = asymmetric(logits, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)

    expected = [
        [plain_asymmetric(z, y, gamma_pos, gamma_neg, margin) for z, y in zip(zs, ys, strict=True)]
        for zs, ys in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_asymmetric_without_focus_and_margin_is_binary_cross_entropy():
    logits, labels = batch(scale=30.0)

    loss = asymmetric(logits, labels, gamma_pos=0, gamma_neg=0, margin=0)

    torch.testing.assert_close(loss, binary_cross_entropy(logits, labels))


def test_asymmetric_with_equal_gammas_is_the_focal_loss():
    """Only there: torchvision's has no margin and lets the gradient through the factor."""
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = batch()
    labels = labels.clamp(min=0)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    loss = asymmetric(ours, labels, gamma_pos=2, gamma_neg=2, margin=0, detach_weight=False)
    reference = sigmoid_focal_loss(theirs, labels.double(), alpha=-1, gamma=2)
    loss.sum().backward()
    reference.sum().backward()

    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_detached_weight_scales_the_gradient_of_the_logarithm(gamma):
    logits = torch.tensor([[0.7, -1.3]], dtype=torch.float64, requires_grad=True)

    asymmetric(logits, labels_like([[1, 0]]), gamma_pos=gamma, gamma_neg=gamma, margin=0.1).sum().backward()

    p = torch.sigmoid(logits.detach())[0]
    q = p[1] - 0.1
    present = -((1 - p[0]) ** gamma) * (1 - p[0])
    absent = q**gamma * p[1] * (1 - p[1]) / (1 - q)
    torch.testing.assert_close(logits.grad, torch.stack([present, absent])[None])


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "margin"), [(0, 0, 0), (1, 4, 0.05), (0.5, 0.5, 0), (2, 1.5, 0.3)])
def test_gradcheck(gamma_pos, gamma_neg, margin):
    logits, labels = batch(shape=(4, 3))
    logits.requires_grad_()

    def loss(z):
        return asymmetric(z, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin, detach_weight=False)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradcheck(lambda z: binary_cross_entropy(z, labels), logits)
    assert torch.autograd.gradcheck(lambda z: balanced_mean(binary_cross_entropy(z, labels), labels), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("gamma", "margin"), [(0.0, 0.0), (0.5, 0.0), (0.5, 0.05), (4.0, 0.05), (4.0, 0.0)])
def test_finite_at_every_extreme(dtype, detach, gamma, margin):
    logits = torch.tensor([EXTREME] * 4, dtype=dtype, requires_grad=True)
    labels = labels_like([[state] * len(EXTREME) for state in STATES])

    focal = asymmetric(logits, labels, gamma_pos=gamma, gamma_neg=gamma, margin=margin, detach_weight=detach)
    plain = binary_cross_entropy(logits, labels)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (focal, plain)]

    for values in (focal, plain, *gradients):
        assert torch.isfinite(values).all()
    assert (focal >= 0).all()
    far = logits[0].abs() > 100
    torch.testing.assert_close(plain[0][far], -logits[0][far].clamp(max=0).to(plain.dtype))
    for gradient in gradients:
        assert (gradient[2:] == 0).all()


@pytest.mark.parametrize("loss", [binary_cross_entropy, asymmetric])
def test_a_broken_logit_of_an_unknown_entry_changes_nothing(loss):
    logits = torch.tensor([[math.nan, math.inf, -math.inf, 0.5]], requires_grad=True)

    values = loss(logits, labels_like([[UNKNOWN, UNCERTAIN, UNKNOWN, PRESENT]]))
    values.sum().backward()

    for row in (values[0], logits.grad[0].abs()):
        assert row[:3].tolist() == [0, 0, 0]
        assert row[3] > 0


def test_float32_under_autocast():
    """bfloat16 keeps 8 bits: 3.001 and 3.002 are one number there, but not their losses."""
    logits = torch.tensor([[3.001, 3.002]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = binary_cross_entropy(logits, labels_like([[0, 0]]))
        focal = asymmetric(logits, labels_like([[0, 0]]))
        mean = balanced_mean(plain, labels_like([[0, 0]]))

    for values in (plain, focal, mean):
        assert values.dtype == torch.float32
    assert plain[0, 0] < plain[0, 1]
    assert binary_cross_entropy(logits.bfloat16(), labels_like([[0, 0]])).dtype == torch.float32


@given(
    logits=hnp.arrays("float64", (3, 4), elements=st.floats(-700, 700)),
    labels=hnp.arrays("int8", (3, 4), elements=st.sampled_from(STATES)),
    gamma=st.floats(0, 5),
    margin=st.floats(0, 0.9),
)
def test_focus_and_margin_only_ever_lower_the_loss(logits, labels, gamma, margin):
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)

    focal = asymmetric(logits, labels, gamma_pos=gamma, gamma_neg=gamma, margin=margin)

    assert (focal >= 0).all()
    assert (focal <= binary_cross_entropy(logits, labels) * (1 + 1e-9) + 1e-12).all()


@given(labels=hnp.arrays("int8", (3, 4), elements=st.sampled_from(STATES)))
def test_balanced_mean_equals_the_plain_loop(labels):
    values = torch.linspace(0.1, 2.0, 12, dtype=torch.float64).reshape(3, 4)
    present = [v for v, y in zip(values.flatten().tolist(), labels.flatten(), strict=True) if y == PRESENT]
    absent = [v for v, y in zip(values.flatten().tolist(), labels.flatten(), strict=True) if y == ABSENT]

    got = balanced_mean(values, torch.from_numpy(labels)).item()

    assert got == pytest.approx(sum(sum(part) / len(part) for part in (present, absent) if part))


@given(labels=hnp.arrays("int8", (3, 4), elements=st.sampled_from(STATES)))
def test_masked_means_and_sums_equal_indexing(labels):
    mask = torch.from_numpy(labels) >= 0
    values = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(3, 4)

    torch.testing.assert_close(masked_sum(values, mask), values[mask].sum())
    if mask.any():
        torch.testing.assert_close(masked_mean(values, mask), values[mask].mean())
    else:
        assert masked_mean(values, mask) == 0


@given(labels=hnp.arrays("int8", (3, 4), elements=st.sampled_from(STATES)))
def test_means_over_known_entries_equal_indexing(labels):
    labels = torch.from_numpy(labels)
    logits = torch.linspace(-3.0, 4.0, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    known = labels >= 0
    reference = (
        F.binary_cross_entropy_with_logits(logits[known], labels[known].double()) if known.any() else 0 * logits.sum()
    )
    (slope,) = torch.autograd.grad(reference, logits)

    for found in (mean_binary_cross_entropy(logits, labels), known_mean(binary_cross_entropy(logits, labels), labels)):
        torch.testing.assert_close(found, reference)
        torch.testing.assert_close(torch.autograd.grad(found, logits)[0], slope)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("loss", [lambda z, y: known_mean(asymmetric(z, y), y), mean_binary_cross_entropy])
def test_a_logit_that_is_no_number_matters_only_where_something_is_known(loss, bad):
    labels = labels_like([[PRESENT, UNKNOWN, UNCERTAIN, ABSENT]])
    logits = torch.tensor([[0.5, bad, bad, -0.5]], requires_grad=True)
    clean = torch.tensor([[0.5, 0.0, 0.0, -0.5]], requires_grad=True)

    found, expected = loss(logits, labels), loss(clean, labels)

    assert found == expected
    assert torch.equal(torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, clean)[0])


@pytest.mark.parametrize("loss", [binary_cross_entropy, asymmetric])
def test_a_batch_without_annotations_gives_zero_and_a_zero_gradient(loss):
    logits = torch.tensor([[5.0, -80.0], [0.0, 1e30]], requires_grad=True)
    labels = labels_like([[UNKNOWN, UNKNOWN], [UNCERTAIN, UNKNOWN]])

    for reduce in (
        lambda values: masked_mean(values, labels >= 0),
        lambda values: masked_sum(values, labels >= 0),
        lambda values: balanced_mean(values, labels),
        lambda values: known_mean(values, labels),
        lambda _: mean_binary_cross_entropy(logits, labels),
    ):
        total = reduce(loss(logits, labels))
        (gradient,) = torch.autograd.grad(total, logits)

        assert total == 0
        assert (gradient == 0).all()


def test_balanced_mean_weighs_a_rare_kind_as_much_as_the_other():
    """One present entry among 99 absent ones sends half of the total gradient."""
    labels = torch.zeros(10, 10, dtype=torch.int8)
    labels[3, 4] = PRESENT
    logits = torch.zeros(10, 10, requires_grad=True)

    balanced_mean(binary_cross_entropy(logits, labels), labels).backward()

    assert logits.grad[3, 4] == pytest.approx(-0.5)
    assert logits.grad.clamp(min=0).sum() == pytest.approx(0.5)

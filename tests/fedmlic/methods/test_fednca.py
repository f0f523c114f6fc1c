"""fednca: the simplex, all terms by loop, attention by hand, frozen rows, limits."""

import math

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.learner import build_learner
from fedmlic.methods.fednca import alignment, ramp, rejection, simplex
from fedmlic.spec import build

NAMES = ("zero", "one", "two", "three")
SHAPE = (16, 16, 1)


def learner(text="fednca()"):
    return build_learner(Experiment(method=text, model="small_cnn(width=8)"), NAMES, SHAPE)


@pytest.mark.parametrize(("num_labels", "width"), [(2, 2), (5, 5), (7, 12)])
def test_corners_have_length_one_and_equal_angles(num_labels, width):
    gram = simplex(num_labels, width).double() @ simplex(num_labels, width).double().T

    expected = torch.full((num_labels, num_labels), -1 / (num_labels - 1), dtype=torch.float64)
    torch.testing.assert_close(gram, expected.fill_diagonal_(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_labels", "told"),
    [
        (1, r"^Expected 2 labels or more, .* got 1\. Choose another method, such as bce\(\)\.$"),
        (5, r"^Expected 2 to 4 labels .* got 5\. Set width to 5 or more, or take a wider model\.$"),
    ],
)
def test_labels_that_do_not_fit_are_refused(num_labels, told):
    with pytest.raises(InputError, match=told):
        simplex(num_labels, 4)


def drawn():
    rng = torch.Generator().manual_seed(1)
    matrix = torch.randn(3, 4, 4, generator=rng, dtype=torch.float64)
    labels = torch.tensor([[1, 0, -1, 0], [0, 0, 1, -2], [0, 0, 0, 0]], dtype=torch.int8)
    return matrix, labels


@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_rejection_by_loop(negatives):
    matrix, labels = drawn()
    best = {place: matrix[place].max().item() for place in np.ndindex(3, 4) if labels[place] == ABSENT}
    hardest = sorted(best, key=best.__getitem__, reverse=True)[: int((labels == PRESENT).sum())]

    found = rejection(matrix, labels, 0.3, negatives)

    for place in np.ndindex(3, 4):
        counts = place in (best if negatives == "all" else hardest)
        expected = max(0.0, 1 / (1 + math.exp(-best[place])) - 0.3) if counts else 0.0
        assert found[place].item() == pytest.approx(expected)


@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_a_batch_without_a_present_entry_rejects_nothing(negatives):
    labels = torch.tensor([[0, 0, -1], [0, -2, 0]], dtype=torch.int8)

    assert not rejection(torch.full((2, 3, 3), 5.0), labels, 0.3, negatives).any()
    assert rejection(torch.full((2, 3, 3), 5.0), labels.index_fill(1, torch.tensor(1), 1), 0.3, negatives).any()


@pytest.mark.parametrize("kind", ["softmax", "cosine"])
def test_alignment_by_loop(kind):
    matrix, labels = drawn()
    cosines = matrix.tanh()

    found = alignment(cosines, labels, kind, 0.07)

    for image, label in np.ndindex(3, 4):
        own = cosines[image, label].tolist()
        whole = math.log(sum(math.exp(each / 0.07) for each in own))
        expected = whole - own[label] / 0.07 if kind == "softmax" else 1 - own[label]
        assert found[image, label].item() == pytest.approx(expected if labels[image, label] == PRESENT else 0.0)


def test_one_place_is_read_by_the_attentions_values_alone():
    """With a single place attention weights are 1, so f_c is out(value(token)) for every label."""
    network = learner().resident.network.eval()
    with torch.no_grad():
        network.bias.copy_(torch.arange(4.0))
    images = torch.randn(2, *reversed(SHAPE))
    features = network.backbone(images).mean((2, 3), keepdim=True)
    network.backbone = torch.nn.Identity()

    scores = network(features)
    weight, bias = network.attention.in_proj_weight, network.attention.in_proj_bias
    width = features.shape[1]
    value = features.flatten(1) @ weight[2 * width :].T + bias[2 * width :]
    products = network.attention.out_proj(value) @ network.corners.T

    torch.testing.assert_close(scores.logits, 10 * products + torch.arange(4.0))
    torch.testing.assert_close(scores.matrix[:, 0], scores.logits)
    network.scale = None
    torch.testing.assert_close(network(features).logits, products + torch.arange(4.0))


def test_the_scale_trains_and_is_exchanged():
    learned, without = learner("fednca(scale=4.0)"), learner("fednca(scale=None)")
    network, labels = learned.resident.network, drawn()[1]

    learned.method.objective.loss(network, torch.randn(3, *reversed(SHAPE)), labels, torch.ones(2)).backward()

    assert network.scale.item() == 4.0
    assert network.scale.grad.item() != 0
    assert set(learned.resident.layout.names) - set(without.resident.layout.names) == {"scale"}


def test_the_whole_loss_is_the_sum_of_its_terms_over_labels():
    learned = learner("fednca(reject=0.5, contrast=0.25)")
    images, labels = torch.randn(3, *reversed(SHAPE)), drawn()[1]
    network, objective = learned.resident.network.eval(), learned.method.objective

    scores = network(images)
    cost = 0.0
    for place in np.ndindex(3, 4):
        z = scores.logits[place].item()
        cost += {1: math.log1p(math.exp(-z)), 0: math.log1p(math.exp(z))}.get(labels[place].item(), 0.0)
    cost += 0.5 * rejection(scores.matrix, labels, 0.3, "hardest").sum().item()
    cost += 0.25 * alignment(scores.cosines, labels, "softmax", 0.07).sum().item()

    assert objective.loss(network, images, labels, torch.ones(2)).item() == pytest.approx(cost / 3, rel=1e-5)


def test_the_simplex_is_not_sent_and_learned_rows_are():
    frozen, learned = (learner(text).resident.layout.names for text in ("fednca()", "fednca(classifier='learned')"))

    assert "corners" not in frozen
    assert set(learned) - set(frozen) == {"corners"}


def test_ramps_and_width():
    assert [ramp(number, 101, 0.6, 0.9) for number in (1, 61, 76, 91, 101)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [ramp(number, 3, 0.2, 0.6) for number in (1, 2, 3)] == pytest.approx([0, 0.75, 1])  # shares 0, 1/2, 1
    assert [ramp(1, 1, *bounds) for bounds in ((0.6, 0.9), (0.2, 0.6))] == [1, 1], "no term is off for a whole run"
    network = learner("fednca(width=12)").resident.network
    assert network.corners.shape == (4, 12)
    with pytest.raises(InputError, match="heads"):
        learner("fednca(width=10)")
    assert build("method", "fednca()").objective.one_by_one == ""

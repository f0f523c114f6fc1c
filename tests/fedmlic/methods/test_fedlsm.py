"""fedlsm: completion and mixing by hand, the whole loss by loop, plain BCE as its limit, pseudo-positives in flag."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import COMPLETED, PREFIX
from fedmlic.labels import PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.fedlsm import Bounds, completed, mixed, mixed_labels
from fedmlic.mods.positive_rows import positives_of
from fedmlic.pixel_scale import to_float
from fedmlic.shard import Shard
from fedmlic.spec import build
from fedmlic.views import weak_view

NAMES = ("zero", "one", "two")
SIDE = 8


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def data(num_images=10, hidden=0.5):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (num_images, 3)).astype(np.int8)
    labels[rng.random(labels.shape) < hidden] = UNKNOWN
    pixels = rng.integers(0, 255, (num_images, SIDE, SIDE, 1)).astype(np.uint8)
    return Shard(0, NAMES, Pixels(pixels), np.arange(num_images), labels, np.zeros(0, np.int64), labels[:0])


def turn(text, shard, memory=None):
    """The learner after one turn from its first weights, its teacher of the same weights, and what it told."""
    experiment = Experiment(method=text, model="small_cnn(width=4, num_blocks=0)", batch_size=5, local_epochs=2)
    learned = build_learner(experiment, NAMES, (SIDE, SIDE, 1))
    teacher = learned.build_network(experiment).eval().requires_grad_(requires_grad=False)
    local = Local(experiment, 1, 0, torch.device("cpu"), lambda: teacher, memory={} if memory is None else memory)
    return learned, teacher, learned.method.train(learned.resident, shard, local), local


def test_completion_by_hand():
    labels = torch.tensor([[1, -1, -1], [-2, 0, -1]], dtype=torch.int8)
    taught = torch.tensor([[0.0, 0.85, 0.01], [0.86, 0.99, 0.3]])  # both bounds belong to what is sure

    assert completed(labels, taught, Bounds(0.85, 0.01)).tolist() == [[1, 1, 0], [1, 0, UNKNOWN]]


@pytest.mark.parametrize("logit", [18.0, 200.0])
def test_a_bound_of_0_or_1_completes_nothing_where_the_sigmoid_is_rounded_to_it(logit):
    labels = torch.tensor([[-1, -1], [-1, 1]], dtype=torch.int8)
    taught = torch.sigmoid(torch.tensor([[logit, -7 * logit], [-7 * logit, -7 * logit]]))
    assert taught.tolist() == [[1.0, 0.0], [0.0, 0.0]]

    assert completed(labels, taught, Bounds(1.0, 0.0)).tolist() == [[-1, -1], [-1, 1]]
    assert completed(labels, taught, Bounds(0.9, 0.0)).tolist() == [[1, -1], [-1, 1]]
    assert completed(labels, taught, Bounds(1.0, 0.1)).tolist() == [[-1, 0], [0, 1]]


def test_mixing_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])

    assert mixed(values, torch.tensor([1, 0]), torch.tensor(0.25)).tolist() == [[2.5, 5.0], [1.5, 3.0]]
    assert mixed(values[..., None], torch.tensor([1, 0]), torch.tensor(0.25)).shape == (2, 2, 1)


def test_entries_of_mixed_images_that_count_by_hand():
    """The first image counts from 0.7 and up to 0.005 only, its partner from 0.85 and up to 0.01."""
    labels = torch.tensor([[-1, -1, -1, -1, 1, 1], [-1, -1, -1, -1, 0, 0]], dtype=torch.int8)
    taught = torch.tensor([[0.75, 0.5, 0.004, 0.75, 0.004, 0.5], [0.9, 0.9, 0.009, 0.8, 0.001, 0.9]])

    soft, used = mixed_labels(
        labels, taught, torch.tensor([1, 0]), torch.tensor(0.25), (Bounds(0.7, 0.005), Bounds(0.85, 0.01))
    )

    # By column: 0.75 as 1 with 0.9 as 1; 0.5 says nothing; 0.004 and 0.009 as 0; partner's 0.8 is not sure;
    # annotated entries count where the teacher is sure, with their label; not where it is not.
    assert used[0].tolist() == [True, False, True, False, True, False]
    assert soft[0][used[0]].tolist() == [1.0, 0.0, 0.25]
    assert used[1].tolist() == [False, False, False, False, True, False]
    assert soft[1][used[1]].tolist() == [0.75]


@pytest.mark.parametrize("weak", ["none", "flip"])
def test_the_loss_by_loop(weak):
    """What a batch gives, from the teacher's answers for the images that it saw, and all terms by loop."""
    shard = data()
    learned, teacher, _, local = turn(
        f"fedlsm(weak='{weak}', low=0.5, high=0.5, present_from=0.52, absent_below=0.48)", shard
    )
    network, images = learned.resident.network.eval(), to_float(shard.images.take(shard.rows[:4]))
    labels, numbers = torch.from_numpy(shard.labels[:4]), torch.arange(4)
    given = learned.method.objective.inputs(replace(local, shard=shard)).of(images, labels, numbers)
    strong, answers, blend, targets, used = given
    seen = weak_view(images, local.torch_rng("fedlsm/views"), weak=weak) if weak != "none" else images
    rng = local.rng("fedlsm/mixing")
    partner, r = rng.permutation(4), rng.beta(0.2, 0.2)

    def sure(q, upper, lower):
        return 1 if q >= upper else 0 if q <= lower else None

    said, plain = torch.sigmoid(teacher(seen)), torch.sigmoid(teacher(images))
    whole, both, certain, mixtures = torch.sigmoid(network(strong)), torch.sigmoid(network(blend)), [], []
    for i, c in np.ndindex(4, 3):
        y, j = labels[i, c].item(), partner[i]
        p, m = whole[i, c].item(), both[i, c].item()
        known = y if y >= 0 else sure(said[i, c].item(), 0.52, 0.48)
        assert answers[i, c] == (UNKNOWN if known is None else known)
        if known is not None:
            certain.append(-math.log(p if known == PRESENT else 1 - p))
        own, other = sure(plain[i, c].item(), 0.5, 0.5), sure(plain[j, c].item(), 0.52, 0.48)
        assert used[i, c].item() == (own is not None and other is not None)
        if used[i, c]:
            first, second = (labels[k, c].item() if labels[k, c] >= 0 else s for k, s in ((i, own), (j, other)))
            t = r * first + (1 - r) * second
            assert targets[i, c].item() == pytest.approx(t)
            mixtures.append(-t * math.log(m) - (1 - t) * math.log(1 - m))
    assert len(mixtures) > 1, plain
    assert (strong is images) == (weak == "none")
    torch.testing.assert_close(blend, r * images + (1 - r) * images[partner])
    found = learned.method.objective.loss(network, images, labels, *given).item()
    assert found == pytest.approx(np.mean(certain) + 0.1 * np.mean(mixtures), rel=1e-5)


def test_a_teacher_that_is_never_sure_leaves_plain_cross_entropy():
    shard = data()
    ours, plain = (
        turn(text, shard)[0]
        for text in ("fedlsm(present_from=1.0, absent_below=0.0, mixing=0.0, weak='none')", "bce()")
    )

    torch.testing.assert_close(ours.resident.flat, plain.resident.flat, rtol=1e-5, atol=1e-6)


def test_pseudo_positives_of_the_turn_count_for_flag():
    shard, memory = data(), {}
    _, teacher, told, local = turn("fedlsm(present_from=0.5, absent_below=0.5, weak='none')", shard, memory)
    probs = torch.sigmoid(teacher(to_float(shard.images.take(shard.rows))))
    labels = torch.from_numpy(shard.labels)
    expected = (labels == PRESENT) | ((labels == UNKNOWN) & (probs > 0.5))

    assert positives_of(shard, local).tolist() == expected.sum(dim=0).tolist()
    assert torch.equal(memory[PREFIX + COMPLETED] == PRESENT, expected)
    pseudo = int((expected & (labels == UNKNOWN)).sum())
    assert told.metrics["pseudo-present-per-label"] == pytest.approx(pseudo / 3)
    assert positives_of(shard, Local(None, 1, 0, None, None)).tolist() == (shard.labels == PRESENT).sum(0).tolist()


@pytest.mark.parametrize("text", ["fedlsm(absent_below=0.9)", "fedlsm(low=0.8)"])
def test_bounds_in_the_wrong_order_are_refused(text):
    with pytest.raises(InputError, match="to be at most"):
        build("method", text)

"""fedlsm: completion and mixing by hand, the whole loss by loop, plain BCE as its limit, pseudo-positives in flag."""

import math

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import COMPLETED, PREFIX
from fedmlic.labels import PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.fedlsm import completed, mixed
from fedmlic.mods.positive_rows import positives_of
from fedmlic.shard import Shard
from fedmlic.spec import build
from fedmlic.training import to_float

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
    taught = torch.tensor([[0.0, 0.9, 0.005], [0.86, 0.99, 0.3]])

    assert completed(labels, taught, 0.85, 0.01).tolist() == [[1, 1, 0], [1, 0, UNKNOWN]]


def test_mixing_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])

    assert mixed(values, torch.tensor([1, 0]), torch.tensor([0.25, 1.0])).tolist() == [[2.5, 5.0], [3.0, 6.0]]
    assert mixed(values[..., None], torch.tensor([1, 0]), torch.tensor([0.25, 1.0])).shape == (2, 2, 1)


def test_the_loss_by_loop():
    shard = data()
    learned, _, _, _ = turn("fedlsm()", shard)
    network, images = learned.resident.network.eval(), to_float(shard.images.take(shard.rows[:4]))
    answers = torch.tensor([[1, 0, -1], [-1, 1, -1], [0, 0, 1], [-1, -1, 0]], dtype=torch.int8)
    taught = torch.tensor([[0.5, 0.5, 0.6], [0.2, 0.5, 0.8], [0.5, 0.5, 0.5], [0.001, 0.4, 0.5]])
    uncertain = (answers == UNKNOWN) & (taught >= 0.005) & (taught <= 0.7)
    partner, ratio = torch.tensor([2, 0, 3, 1]), torch.tensor([0.9, 0.2, 0.5, 0.6])

    found = learned.method.objective.loss(network, images, None, answers, taught, uncertain, partner, ratio).item()

    certain, mixtures = [], []
    whole = torch.sigmoid(network(images))
    for i in range(4):
        j, r = partner[i].item(), ratio[i].item()
        both = torch.sigmoid(network((r * images[i] + (1 - r) * images[j])[None]))[0]
        for c in range(3):
            p, m = whole[i, c].item(), both[c].item()
            if answers[i, c] >= 0:
                certain.append(-math.log(p if answers[i, c] == PRESENT else 1 - p))
            elif 0.005 <= taught[i, c] <= 0.7 and answers[j, c] >= 0:
                t = r * taught[i, c].item() + (1 - r) * answers[j, c].item()
                mixtures.append(-t * math.log(m) - (1 - t) * math.log(1 - m))
    assert len(mixtures) == 3
    assert found == pytest.approx(np.mean(certain) + 0.1 * np.mean(mixtures), rel=1e-5)


def test_a_teacher_that_is_never_sure_leaves_plain_cross_entropy():
    shard = data()
    ours, plain = (turn(text, shard)[0] for text in ("fedlsm(present_from=1.0, absent_below=0.0, mixing=0.0)", "bce()"))

    torch.testing.assert_close(ours.resident.flat, plain.resident.flat, rtol=1e-5, atol=1e-6)


def test_pseudo_positives_of_the_turn_count_for_flag():
    shard, memory = data(), {}
    _, teacher, told, local = turn("fedlsm(present_from=0.5, absent_below=0.5)", shard, memory)
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

"""fedcorr at the client: dimensions and relabelling by hand, planted wrong entries, the three stages of a turn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import COMPLETED, PREFIX
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.fedcorr import (
    CLOSE,
    LIMIT,
    NOISY,
    SCORED,
    STAGE,
    TOOK_PART,
    local_dimension,
    relabelled,
    suspected,
    worst,
)
from fedmlic.shard import Shard
from strategies.server.check import check_experiment

NAMES = ("one", "two", "three", "four")
NAN = math.nan


def test_local_dimension_by_hand_and_by_a_plain_loop():
    """From 0 the two nearest are 1 and 2 away: -2 / (log(1/2) + log(1)) = 2 / log 2."""
    line = torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    assert float(local_dimension(line, 2)[0]) == pytest.approx(2 / math.log(2), rel=1e-5)

    points = np.random.default_rng(0).random((30, 4))
    for i, found in enumerate(local_dimension(torch.from_numpy(points), 5).tolist()):
        near = sorted(np.linalg.norm(points[j] - points[i]) + CLOSE for j in range(30) if j != i)[:5]
        assert found == pytest.approx(-5 / sum(math.log(r / near[-1]) for r in near))


def test_dimensions_of_planted_sheets():
    """Points of a square and of a cube within ten dimensions."""
    rng = np.random.default_rng(1)
    for dimensions in (2, 5):
        points = rng.random((800, dimensions)) @ np.linalg.qr(rng.normal(size=(10, 10)))[0][:dimensions]
        assert float(local_dimension(torch.from_numpy(points), 20).mean()) == pytest.approx(dimensions, rel=0.2)


def test_equal_and_single_points_have_no_dimension():
    assert local_dimension(torch.ones(6, 3), 3).isnan().all()
    assert local_dimension(torch.ones(1, 3), 3).isnan().all()
    assert local_dimension(torch.zeros(0, 3), 3).shape == (0,)


def test_suspects_and_the_worst_of_them_by_hand():
    losses = torch.tensor([[0.1, 0.2, NAN], [0.15, 4.0, 0.1], [5.0, 4.5, 6.0], [0.1, 0.2, NAN]])

    entries = suspected(losses, "entry")
    assert entries.tolist() == [[False] * 3, [False, True, False], [True] * 3, [False] * 3]
    assert worst(losses, entries, 0.5, "entry").nonzero().tolist() == [[2, 0], [2, 2]]
    images = suspected(losses, "image")
    assert images.tolist() == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]
    assert worst(losses, images, 1.0, "image").sum() == 3
    assert not worst(losses, images, 0.9, "image").any()


def test_relabelling_by_hand():
    labels = torch.tensor([[PRESENT, ABSENT, UNKNOWN, ABSENT, PRESENT]], dtype=torch.int8)
    probs = torch.tensor([[0.05, 0.95, 0.99, 0.8, 0.05]])
    chosen = torch.tensor([[True, True, True, True, False]])

    found = relabelled(labels, probs, chosen, 0.9)

    assert found.tolist() == [[ABSENT, PRESENT, UNKNOWN, ABSENT, PRESENT]]


def test_planted_wrong_entries_are_suspected():
    rng = np.random.default_rng(0)
    probs = np.where(rng.random((300, 4)) < 0.3, rng.beta(20, 2, (300, 4)), rng.beta(2, 20, (300, 4)))
    truth, wrong = probs > 0.5, rng.random((300, 4)) < 0.2
    losses = -np.log(np.where(truth ^ wrong, probs, 1 - probs))

    found = suspected(torch.from_numpy(losses), "entry").numpy()

    assert found[wrong].mean() > 0.97
    assert found[~wrong].mean() < 0.03


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


class Client:
    """Client 2 with images of one bright quarter per present label and wrong labels; plays turn after turn."""

    def __init__(self, text="fedcorr(neighbours=3)", num_images=32, wrong=0.0, **settings):
        rng = np.random.default_rng(3)
        self.truth = (rng.random((num_images, 4)) < 0.4).astype(np.int8)
        flipped = rng.random(self.truth.shape) < wrong
        self.labels = np.where(flipped, 1 - self.truth, self.truth).astype(np.int8)
        bright = self.truth.astype(np.int64).reshape(-1, 2, 2).repeat(8, axis=1).repeat(8, axis=2)
        self.pixels = (bright * 150 + rng.integers(0, 60, (num_images, 16, 16))).astype(np.uint8)[..., None]
        values = {"model": "small_cnn(width=8)", "batch_size": 16, "learning_rate": 1e-2, "local_epochs": 1}
        self.settings = Experiment(method=text, **{**values, **settings})
        self.learner = build_learner(self.settings, NAMES, (16, 16, 1))
        self.flat = self.learner.resident.flat.clone()
        self.memory = {}

    def turn(self, stage=1, noisy=(), number=1, limit=0.1, labels=None):
        labels = self.labels if labels is None else labels
        rows = np.arange(len(labels))
        shard = Shard(2, NAMES, Pixels(self.pixels), rows, labels, np.zeros(0, np.int64), labels[:0])
        shared = {NOISY: torch.tensor(noisy), STAGE: torch.tensor(stage), LIMIT: torch.tensor(limit)}
        resident = self.learner.resident
        resident.load(self.flat)
        local = Local(self.settings, number, 2, torch.device("cpu"), lambda: None, self.flat, shared=shared)
        trained = self.learner.method.train(resident, shard, replace(local, memory=self.memory))
        moved = resident.flat.clone()
        return moved, trained

    @property
    def now(self):
        return self.memory[PREFIX + COMPLETED].numpy()


def test_a_noisy_client_relabels_what_is_wrong_and_the_others_nothing():
    client = Client(wrong=0.15, num_images=64, local_epochs=30)
    client.flat, _ = client.turn(labels=client.truth)  # the global model has learned the truth at other clients
    client.memory.clear()
    client.settings = client.settings.model_copy(update={"local_epochs": 1})

    client.turn(number=2)
    assert np.array_equal(client.now, client.labels)
    _, told = client.turn(number=3, noisy=[1])
    assert np.array_equal(client.now, client.labels)
    assert told.metrics["noise-level"] == 0.0
    client.turn(number=4, noisy=[2])
    wrong = client.labels != client.truth
    changed = client.now != client.labels
    assert 0.2 < changed[wrong].mean() < 0.95  # half of the suspected
    assert changed[~wrong].mean() < 0.02
    client.turn(stage=3, number=5, noisy=[2])
    assert (client.now != client.truth)[wrong].mean() < 0.1
    kept = client.now.copy()
    client.flat = torch.zeros_like(client.flat)
    client.turn(stage=3, number=6, noisy=[2])
    assert np.array_equal(client.now, kept)


def test_a_client_with_much_noise_sits_out_the_fine_tuning():
    client = Client(wrong=0.3, local_epochs=2)
    client.turn()

    moved, told = client.turn(stage=2, noisy=[2], limit=0.0)
    assert told.metrics[TOOK_PART] == 0.0
    assert told.metrics["noise-level"] > 0
    assert told.num_steps == 0
    assert torch.equal(moved, client.flat)
    _, again = client.turn(stage=2, noisy=[2], limit=1.0)
    assert again.num_steps > 0
    assert again.metrics["noise-level"] == told.metrics["noise-level"]


def test_noise_holds_a_client_near_the_global_model():
    far, near = (Client(f"fedcorr(proximal={beta}, ratio=0.0)", wrong=0.3) for beta in (0.0, 50.0))
    moved = []
    for client in (far, near):
        client.turn()
        end, _ = client.turn(number=2, noisy=[2])
        moved.append(float((end - client.flat).norm()))

    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize("score", ["lid", "loss"])
@pytest.mark.parametrize("unit", ["entry", "image"])
@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_few_images_and_no_annotations_survive(score, unit, num_images):
    client = Client(f"fedcorr(score='{score}', unit='{unit}')", num_images=num_images)
    for labels in (client.labels, np.full_like(client.labels, UNKNOWN)):
        client.memory.clear()
        for number, stage in enumerate((1, 1, 2, 3), start=1):
            moved, told = client.turn(stage, noisy=[2], number=number, labels=labels)
            assert moved.isfinite().all()
            assert all(math.isfinite(value) for value in told.metrics.values())
        assert (client.now[labels == UNKNOWN] == UNKNOWN).all()
    _, told = Client("fedcorr(score='lid')", num_images=num_images).turn()
    assert told.metrics[SCORED] == float(num_images > 2)


def test_it_needs_its_rule_and_leave(tiny):
    with pytest.raises(InputError, match=r"strategy='fedcorr\(\)'"):
        check_experiment(*tiny(method="fedcorr()", allow_statistics=True))
    with pytest.raises(InputError, match="allow-statistics=true"):
        check_experiment(*tiny(method="fedcorr()", strategy="fedcorr()"))
    check_experiment(*tiny(method="fedcorr()", strategy="fedcorr()", allow_statistics=True))

"""fednoro at the client: costs and reports by hand, the ramp, what the verdict changes in a turn, its rule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.fednoro import ENTRIES, LOSSES, NOISY, SINCE, costs, loss_report, prior_logits, ramped
from fedmlic.shard import Shard
from strategies.server.check import check_experiment

NAMES = ("one", "two", "three")


def test_priors_by_hand():
    """Label 0: 1 of 4 annotated; label 1: none of 2, kept 1/4 away from 0; label 2: nothing annotated."""
    labels = torch.tensor(
        [
            [PRESENT, ABSENT, UNKNOWN],
            [ABSENT, UNKNOWN, UNCERTAIN],
            [ABSENT, ABSENT, UNKNOWN],
            [ABSENT, UNKNOWN, UNKNOWN],
        ],
        dtype=torch.int8,
    )

    assert prior_logits(labels).tolist() == pytest.approx([math.log(1 / 3), math.log(1 / 3), 0.0])


def test_reports_by_hand():
    logits = torch.tensor([[0.0, 2.0, 5.0], [0.0, -1.0, 5.0], [3.0, 0.0, 5.0]])
    labels = torch.tensor([[PRESENT, ABSENT, UNKNOWN], [ABSENT, ABSENT, UNKNOWN], [ABSENT, PRESENT, UNCERTAIN]])

    found = loss_report(logits, labels.to(torch.int8))

    absent = [(math.log(2) + math.log1p(math.exp(3))) / 2, (math.log1p(math.exp(2)) + math.log1p(math.exp(-1))) / 2, 0]
    assert found[LOSSES].tolist() == pytest.approx(np.array([absent, [math.log(2), math.log(2), 0]]))
    assert found[ENTRIES].tolist() == [[2, 2, 0], [1, 1, 0]]


def test_the_ramp_is_the_source_s():
    assert ramped(0.8, 0, 39) == pytest.approx(0.8 * math.exp(-5))
    assert ramped(0.8, 39, 39) == ramped(0.8, 99, 39) == ramped(0.8, 0, 0) == 0.8
    assert ramped(0.8, 10, 20) == pytest.approx(0.8 * math.exp(-5 / 4))


def test_costs_against_a_plain_loop():
    rng = np.random.default_rng(0)
    logits, taught, shift = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.normal(size=3)
    labels = rng.integers(-2, 2, (5, 3)).astype(np.int8)
    expected = np.zeros((5, 3))
    for i, c in np.argwhere(labels >= ABSENT):
        p, q = (1 / (1 + math.exp(-z)) for z in (logits[i, c] + shift[c], taught[i, c]))
        told = -math.log(p if labels[i, c] == PRESENT else 1 - p)
        apart = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        expected[i, c] = 0.3 * apart + 0.7 * told

    given = [torch.from_numpy(each) for each in (logits, labels, taught, shift)]
    found = costs(*given, torch.tensor(0.3, dtype=torch.float64))

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_without_teacher_and_prior_it_is_binary_cross_entropy():
    logits, labels = torch.randn(4, 3), torch.randint(0, 2, (4, 3)).to(torch.int8)

    found = costs(logits, labels, torch.randn(4, 3), torch.zeros(3), torch.tensor(0.0))

    torch.testing.assert_close(
        found, F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none"), rtol=1e-5, atol=1e-6
    )


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def played(shared, *, round_number=5, client=2, method="fednoro(weight=1.0, ramp=0)", labels=None):
    """A turn on twelve images of noise: its end, its metrics, its report."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (12, 3)).astype(np.int8) if labels is None else labels
    pixels = rng.integers(0, 255, (len(labels), 16, 16, 1)).astype(np.uint8)
    shard = Shard(client, NAMES, Pixels(pixels), np.arange(len(labels)), labels, np.zeros(0, np.int64), labels[:0])
    settings = Experiment(method=method, model="small_cnn(width=4)", batch_size=4, local_epochs=1, learning_rate=3e-3)
    learner = build_learner(settings, NAMES, (16, 16, 1))
    start = learner.resident.flat.clone()
    learner.resident.load(start)
    teacher = learner.build_network(settings).eval().requires_grad_(requires_grad=False)
    local = Local(settings, round_number, client, torch.device("cpu"), lambda: teacher, start, shared=shared)
    local = replace(local, round_sums={})
    trained = learner.method.train(learner.resident, shard, local)
    return learner.resident.flat.clone(), trained.metrics, local.round_sums


def named(*clients, since=5):
    return {NOISY: torch.tensor(clients, dtype=torch.int64), SINCE: torch.tensor(since)}


def test_only_noisy_clients_learn_from_the_global_model():
    before, told, report = played({})
    clean, told_clean, no_report = played(named(0, 1))
    noisy, told_noisy, _ = played(named(0, 2))
    early, _, _ = played(named(0, 2), method="fednoro(weight=0.0)")

    assert torch.equal(before, clean)
    assert torch.equal(early, clean)
    assert not torch.equal(noisy, clean)
    assert [each["taught-clients"] for each in (told, told_clean, told_noisy)] == [0.0, 0.0, 1.0]
    assert report[ENTRIES].sum() == 36
    assert not no_report


def test_whole_distillation_does_not_read_the_state_of_labels():
    """With weight 1 and no prior only which entries are annotated matters."""
    labels = np.random.default_rng(2).integers(0, 2, (8, 3)).astype(np.int8)
    text = "fednoro(weight=1.0, ramp=0, adjust=False)"

    first, _, _ = played(named(2), method=text, labels=labels)
    second, _, _ = played(named(2), method=text, labels=1 - labels)

    assert torch.equal(first, second)


@pytest.mark.parametrize("count", [1, 3])
def test_clients_without_annotations_or_with_one_image_report_nothing_wrong(count):
    _, _, report = played({}, labels=np.full((count, 3), UNKNOWN, np.int8))

    assert not report[LOSSES].any()
    assert not report[ENTRIES].any()


def test_it_needs_its_rule_and_leave_to_count(tiny):
    with pytest.raises(InputError, match=r"strategy='fednoro\(\)'"):
        check_experiment(*tiny(method="fednoro()", allow_statistics=True, statistics_min_clients=4))
    with pytest.raises(InputError, match="allow-statistics=true"):
        check_experiment(*tiny(method="fednoro()", strategy="fednoro()"))
    check_experiment(*tiny(method="fednoro()", strategy="fednoro()", allow_statistics=True, statistics_min_clients=4))

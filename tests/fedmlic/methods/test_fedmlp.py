"""fedmlp: sums, tags and losses by loop and by hand, tags that come right in a small federation, limits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.experiment import Experiment
from fedmlic.image_state import COMPLETED, PREFIX
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.fedmlp import (
    FEATURES,
    FIXED_POINT,
    IMAGES,
    LEARNED,
    MISSING,
    degree_sums,
    learning_degree,
    nearness,
    prior_logits,
    prototype_sums,
    tag,
    taught_costs,
)
from fedmlic.protocol import ROUND_SUMS
from fedmlic.shard import Shard

NAMES = ("zero", "one", "two", "three")
SIDE = 16


def drawn(num_images=9, seed=0):
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(num_images, 5, generator=rng)
    return features, torch.randint(-1, 2, (num_images, 3), generator=rng).to(torch.int8)


def test_prototypes_of_two_clients_are_means_weighted_by_images():
    clients = [drawn(9, 0), drawn(4, 1)]
    parts = [prototype_sums(*each) for each in clients]
    sums = {name: parts[0][name] + parts[1][name] for name in (FEATURES, IMAGES)}

    for label in range(3):
        for place, state in enumerate((ABSENT, PRESENT)):
            total, weight = torch.zeros(5), 0
            for features, labels in clients:
                chosen = [f for f, y in zip(features, labels[:, label].tolist(), strict=True) if y == state]
                if chosen:
                    total, weight = total + len(features) * torch.stack(chosen).mean(0), weight + len(features)
            assert sums[IMAGES][place, label] == weight
            torch.testing.assert_close(
                sums[FEATURES][place, label] / FIXED_POINT, total, rtol=1e-4, atol=1e-4, check_dtype=False
            )


def test_nearness_by_loop_and_unknown_without_both_prototypes():
    features, labels = drawn(12)
    labels[:, 1] = ABSENT
    sums = prototype_sums(features, labels)
    found = nearness(features, sums)

    assert found[:, 1].isnan().all()
    for image, label in ((0, 0), (5, 2)):
        here = features[image].double()
        absent, present = (sums[FEATURES][place, label].double() for place in range(2))
        cosines = [float(here @ p) / float(here.norm() * p.norm()) for p in (absent, present)]
        assert found[image, label].item() == pytest.approx(cosines[0] - cosines[1], abs=1e-6)


def test_the_learning_degree_by_hand():
    probs = torch.tensor([[0.1, 0.5], [0.75, 0.2], [0.5, 0.9]])
    missing = torch.tensor([[1, 1], [1, 0], [1, 1]], dtype=torch.bool)

    found = degree_sums(probs, missing, 0.3, 0.7)

    assert found[LEARNED].tolist() == [2, 1]
    assert found[MISSING].tolist() == [3, 2]


def test_a_label_whose_learning_degree_is_withheld_is_not_tagged():
    """Label 0: 2 of 3 are sure; 1 and 2 have one or both counts withheld, of which nobody knows a share."""
    degree = learning_degree({LEARNED: torch.tensor([2, 0, 0]), MISSING: torch.tensor([3, 3, 0])})
    scores = torch.tensor([[0.9], [0.5], [-0.8]]).expand(3, 3)
    free = torch.full((3, 3), UNKNOWN, dtype=torch.int8)

    tags = tag(free, scores, torch.ones(3, 3, dtype=torch.bool), (degree, degree))

    assert degree.tolist() == pytest.approx([2 / 3, 0, 0])
    assert tags.T.tolist() == [[ABSENT, UNKNOWN, UNKNOWN], [UNKNOWN] * 3, [UNKNOWN] * 3]  # floor(2/3 * 2) = 1 of absent


def test_a_prototype_that_is_withheld_tells_nothing():
    """Its images may be counted all the same: every number of it is withheld by itself."""
    features, labels = drawn(12)
    sums = prototype_sums(features, labels)
    sums[FEATURES][1, 2] = 0

    found = nearness(features, sums)

    assert (sums[IMAGES] > 0).all()
    assert found[:, 2].isnan().all()
    assert not found[:, :2].isnan().any()


def test_tags_by_hand():
    """Label 0: absent candidates .9 .5 .1 (one of three by .5), present -.8 -.2 (two by 1); label 1 says nothing."""
    scores = torch.tensor([[0.9, math.nan], [0.5, math.nan], [0.1, math.nan], [-0.8, math.nan], [-0.2, math.nan]])
    tags = torch.full((5, 2), UNKNOWN, dtype=torch.int8)
    missing = torch.ones(5, 2, dtype=torch.bool)
    shares = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0])

    first = tag(tags, scores, missing, shares)
    second = tag(first, scores, missing, shares)
    held = tag(tags, scores, torch.zeros_like(missing), shares)

    assert first[:, 0].tolist() == [ABSENT, UNKNOWN, UNKNOWN, PRESENT, PRESENT]
    assert second[:, 0].tolist() == [ABSENT, ABSENT, UNKNOWN, PRESENT, PRESENT]
    assert (first[:, 1] == UNKNOWN).all()
    assert torch.equal(held, tags)


def test_the_prior_makes_the_papers_adjusted_probability():
    """p pi / (p pi + (1 - p)(1 - pi)) with pi = 1/4; a label without a positive is kept 1 / (2 n) away from 0."""
    labels = torch.tensor([[1, -1, 0], [0, -1, 0], [0, -1, 0], [0, -1, 0]], dtype=torch.int8)
    answers = labels.clone()
    answers[0, 1] = PRESENT
    shift, z = prior_logits(labels, answers), 0.7
    p = 1 / (1 + math.exp(-z))

    for label, pi in enumerate((1 / 4, 1 / 4, 1 / 8)):
        adjusted = p * pi / (p * pi + (1 - p) * (1 - pi))
        assert torch.sigmoid(z + shift[label]).item() == pytest.approx(adjusted, rel=1e-6)


def test_costs_by_loop():
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    taught, shift = torch.rand(4, 3, generator=rng, dtype=torch.float64), torch.tensor([0.5, -1.0, 0.0])
    answers = torch.tensor([[1, 0, -1], [-1, 1, 0], [0, -1, 1], [-1, -1, -1]], dtype=torch.int8)

    told, apart = taught_costs(logits, taught, answers, shift)

    for place in np.ndindex(4, 3):
        z, y, q = logits[place].item(), answers[place].item(), taught[place].item()
        adjusted = 1 / (1 + math.exp(-(z + shift[place[1]].item())))
        expected = {PRESENT: -math.log(adjusted), ABSENT: -math.log(1 - adjusted), UNKNOWN: 0.0}[y]
        assert told[place].item() == pytest.approx(expected)
        assert apart[place].item() == pytest.approx((1 / (1 + math.exp(-z)) - q) ** 2 if y == UNKNOWN else 0.0)


def whole(late, options):
    """The loss of a batch with known logits, and the sums and numbers of its two parts."""
    rng = torch.Generator().manual_seed(4)
    logits, taught = torch.randn(4, 3, generator=rng), torch.rand(4, 3, generator=rng)
    answers = torch.tensor([[1, 0, -1], [-1, 1, 0], [0, -1, 1], [-1, -1, -1]], dtype=torch.int8)
    given = (logits[None], taught[None], answers, torch.zeros(3), torch.tensor(late))
    objective = spec.build("method", f"fedmlp({options})").objective
    told, apart = (each.sum() for each in taught_costs(logits, taught, answers, torch.zeros(3)))
    return objective.loss(torch.nn.Identity(), logits, answers, *given), told, apart


@pytest.mark.parametrize(
    ("options", "early", "late"),
    [
        ("distillation=2.0", lambda told, apart: told / 6 + 2 * apart / 6, lambda told, apart: (told + 2 * apart) / 12),
        ("later='answered'", lambda told, apart: told / 6 + apart / 6, lambda told, _: told / 6),
        ("distillation=0.0", lambda told, _: told / 6, lambda told, _: told / 6),
    ],
)
def test_what_counts_before_and_after_the_warm_up(options, early, late):
    """Six of twelve entries are answered; without the global model's part others do not count, as in the release."""
    for stage, expected in ((False, early), (True, late)):
        found, told, apart = whole(stage, options)
        assert found.item() == pytest.approx(expected(told, apart).item(), rel=1e-6)


def test_without_an_answer_nothing_is_lost():
    logits = torch.ones(2, 3, requires_grad=True)
    given = (logits[None], torch.zeros(1, 2, 3), torch.full((2, 3), UNKNOWN), torch.zeros(3), torch.tensor(True))
    objective = spec.build("method", "fedmlp(later='answered')").objective
    loss = objective.loss(torch.nn.Identity(), logits, given[2], *given)
    loss.backward()

    assert loss.item() == 0
    assert not logits.grad.any()


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def client(number, num_images=48):
    """A client that annotates the two labels ``number`` and ``number + 1`` (modulo four), and its truth."""
    rng = np.random.default_rng(number)
    truth = (rng.random((num_images, len(NAMES))) < 0.4).astype(np.int8)
    bright = truth.astype(np.int64).reshape(-1, 2, 2).repeat(SIDE // 2, axis=1).repeat(SIDE // 2, axis=2)
    pixels = (bright * 150 + rng.integers(0, 60, (num_images, SIDE, SIDE))).astype(np.uint8)[..., None]
    labels = np.full_like(truth, UNKNOWN)
    own = [number % 4, (number + 1) % 4]
    labels[:, own] = truth[:, own]
    rows, nothing = np.arange(num_images), np.zeros(0, np.int64)
    return Shard(number, NAMES, Pixels(pixels), rows, labels, nothing, truth[:0]), truth


def federation(method, num_rounds, **settings):
    """The answers of four clients after some rounds of the mean of their models, with what they were told."""
    people = [client(number) for number in range(4)]
    values = {"batch_size": 16, "local_epochs": 3, "learning_rate": 1e-2, **settings}
    experiment = Experiment(method=method, model="small_cnn(width=8)", **values)
    learner = build_learner(experiment, NAMES, (SIDE, SIDE, 1))
    resident, flat, memory = learner.resident, learner.resident.flat.clone(), [{} for _ in people]
    teacher = learner.build_network(experiment).eval().requires_grad_(requires_grad=False)
    shared, told = {}, []
    for number in range(1, num_rounds + 1):
        flats, sums, told = [], {}, []
        tensors = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
        for name, view in resident.layout.views(flat):
            tensors[name].copy_(view)
        for (shard, _), kept in zip(people, memory, strict=True):
            resident.load(flat)
            local = Local(experiment, number, shard.client, torch.device("cpu"), lambda: teacher, flat)
            local = replace(local, memory=kept, shared=shared)
            told.append(learner.method.train(resident, shard, local))
            flats.append(resident.flat.clone())
            for name, tensor in local.round_sums.items():
                sums[ROUND_SUMS + name] = sums.get(ROUND_SUMS + name, 0) + tensor
        flat, shared = torch.stack(flats).mean(0), sums
    return people, memory, told, flat


def test_tags_of_labels_that_a_client_never_saw_come_right():
    people, memory, told, _ = federation("fedmlp(warm_up=3, absent_share=0.3, present_share=0.3, weak='none')", 6)

    right, count = 0, 0
    for (shard, truth), kept in zip(people, memory, strict=True):
        answers = kept[PREFIX + COMPLETED].numpy()
        annotated = shard.labels >= ABSENT
        assert (answers[annotated] == shard.labels[annotated]).all()
        tagged = ~annotated & (answers >= ABSENT)
        right, count = right + (answers[tagged] == truth[tagged]).sum(), count + tagged.sum()
    entries = sum((shard.labels == UNKNOWN).sum() for shard, _ in people)
    assert count > 0.3 * entries
    assert right > 0.85 * count, right / count
    per_label = sum(t.metrics["tagged-present-per-label"] + t.metrics["tagged-absent-per-label"] for t in told)
    assert per_label * len(NAMES) == pytest.approx(count)


def test_the_first_stage_tags_nothing_and_the_learned_pace_tags_faster_when_all_is_learned():
    slow = federation("fedmlp(warm_up=2, absent_share=0.0, present_share=0.0, weak='none')", 4, local_epochs=1)[2]
    fast = federation("fedmlp(warm_up=2, pace='learned', low=1.0, weak='none')", 3, local_epochs=1)[2]

    assert all(t.metrics["tagged-absent-per-label"] == t.metrics["tagged-present-per-label"] == 0 for t in slow)
    tagged = sum(t.metrics["tagged-present-per-label"] + t.metrics["tagged-absent-per-label"] for t in fast)
    assert tagged * len(NAMES) == pytest.approx(4 * 48 * 2)  # low = 1: every entry counts as learned


def test_the_learned_pace_tags_nothing_where_the_learning_degree_is_withheld(monkeypatch):
    zeros = torch.zeros(len(NAMES), dtype=torch.int64)
    monkeypatch.setattr("fedmlic.methods.fedmlp.degree_sums", lambda *_: {LEARNED: zeros, MISSING: zeros})
    told = federation("fedmlp(warm_up=2, pace='learned', low=1.0, weak='none')", 3, local_epochs=1)[2]

    assert all(t.metrics["tagged-absent-per-label"] == t.metrics["tagged-present-per-label"] == 0 for t in told)


def test_without_its_parts_and_with_complete_labels_it_is_plain_cross_entropy():
    settings = {"batch_size": 16, "local_epochs": 2, "learning_rate": 1e-2}
    shard, truth = client(0)
    shard, ends = replace(shard, labels=truth), []
    for method in ("fedmlp(weak='none', adjust=False)", "bce()"):
        experiment = Experiment(method=method, model="small_cnn(width=8)", **settings)
        learner = build_learner(experiment, NAMES, (SIDE, SIDE, 1))
        teacher = learner.build_network(experiment).eval()
        learner.method.train(learner.resident, shard, Local(experiment, 1, 0, torch.device("cpu"), lambda t=teacher: t))
        ends.append(learner.resident.flat.clone())

    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_a_run_adds_up_prototypes_and_asks_for_leave(tiny, play, tmp_path):
    from fedmlic.errors import InputError
    from fedmlic.record import open_run
    from strategies.server.check import check_experiment

    changes = {"method": "fedmlp(warm_up=1, absent_share=0.2, present_share=0.2)", "statistics_min_clients": 2}
    with pytest.raises(InputError, match="Expected allow-statistics=true"):
        check_experiment(*tiny(**changes))
    play(tmp_path / "run", allow_statistics=True, num_rounds=3, **changes)
    tensors, _ = open_run(tmp_path / "run").load_checkpoint(3)

    width = spec.build("model", "small_cnn(width=4, num_blocks=0)").build(1).num_features
    assert tensors[f"shared/{ROUND_SUMS}{FEATURES}"].shape == (2, 10, width)
    assert tensors[f"shared/{ROUND_SUMS}{FEATURES}"].any()
    assert (tensors[f"shared/{ROUND_SUMS}{LEARNED}"] <= tensors[f"shared/{ROUND_SUMS}{MISSING}"]).all()

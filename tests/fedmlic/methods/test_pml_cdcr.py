"""pml_cdcr: thresholds by hand, selection and losses by loop, planted false candidates, state in whole runs."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.memory import FolderMemory
from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.image_state import PREFIX
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.pml_cdcr import (
    COUNTS,
    EMPTIED,
    FIXED_POINT,
    PROBABILITIES,
    candidate_sums,
    disagreement,
    nothing_left,
    select,
    selected_entries,
    thresholds,
)
from fedmlic.pixel_scale import to_float
from fedmlic.protocol import ROUND_SUMS
from fedmlic.record import open_run
from fedmlic.shard import Shard
from fedmlic.views import strong_view
from sim import run as engine
from strategies.server import rounds
from strategies.server.check import check_experiment

NAMES = ("zero", "one", "two", "three")
SIDE = 16


def test_thresholds_of_two_labels_by_hand():
    """Label 0: candidates .9 and .7, mean .8; label 1: .5, .4 and .3, mean .4; all five: .56; label 2 has none."""
    probs = torch.tensor([[0.9, 0.5, 0.9], [0.7, 0.4, 0.9], [0.2, 0.3, 0.9]])
    candidates = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)

    sums = candidate_sums(probs, candidates)
    found = thresholds(sums[PROBABILITIES].double() / FIXED_POINT, sums[COUNTS], 0.6)
    chosen = select(probs, candidates, found)

    assert sums[COUNTS].tolist() == [2, 3, 0]
    assert found.tolist() == pytest.approx([0.84, 0.44, 0.6], abs=1e-6)
    assert chosen.tolist() == [[True, True, True], [False, False, True], [True, False, True]]


def test_sums_of_two_clients_give_the_thresholds_of_both_together():
    rng = torch.Generator().manual_seed(0)
    probs, candidates = torch.rand(11, 4, generator=rng), torch.rand(11, 4, generator=rng) < 0.5
    parts = [candidate_sums(probs[part], candidates[part]) for part in (slice(0, 4), slice(4, None))]

    means = [probs[:, c][candidates[:, c]].mean().item() for c in range(4)]
    overall = probs[candidates].mean().item()
    sums, counts = (parts[0][name] + parts[1][name] for name in (PROBABILITIES, COUNTS))

    assert thresholds(sums / FIXED_POINT, counts, 0.5).tolist() == pytest.approx(
        [0.5 + mean - overall for mean in means], abs=1e-5
    )


def test_losses_by_loop():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5], [-0.2, 0.1, 0.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([[PRESENT, PRESENT, ABSENT, UNKNOWN], [ABSENT, PRESENT, PRESENT, PRESENT]], dtype=torch.int8)
    judged = torch.tensor([[0.9, 0.2, 0.5, 0.5], [0.5, 0.7, 0.1, 0.3]], dtype=torch.float64)
    selected = select(judged, labels == PRESENT, torch.full((4,), 0.6))

    entries, apart = selected_entries(logits, labels, selected), disagreement(logits, selected, judged)

    for place in np.ndindex(2, 4):
        z, y, q = logits[place].item(), labels[place].item(), judged[place].item()
        p, used = 1 / (1 + math.exp(-z)), y != PRESENT or q >= 0.6
        cost = {PRESENT: -math.log(p), ABSENT: -math.log(1 - p), UNKNOWN: 0.0}[y] if used else 0.0
        assert entries[place].item() == pytest.approx(cost)
        assert apart[place].item() == pytest.approx(0.0 if used else (p - q) ** 2)


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def scenes(num_images, seed):
    """Images with one bright quarter per present label, and their labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, len(NAMES))) < 0.4).astype(np.int8)
    bright = labels.astype(np.int64).reshape(-1, 2, 2).repeat(SIDE // 2, axis=1).repeat(SIDE // 2, axis=2)
    return (bright * 120 + rng.integers(0, 100, (num_images, SIDE, SIDE))).astype(np.uint8)[..., None], labels


def client(number, share=0.4, num_images=64):
    """A shard whose labels are candidate sets, and which candidates are true."""
    pixels, truth = scenes(num_images, number)
    nothing = Shard(number, NAMES, Pixels(pixels), np.arange(num_images), truth, np.zeros(0, np.int64), truth[:0])
    false = (truth == ABSENT) & (np.random.default_rng(100 + number).random(truth.shape) < share)
    return replace(nothing, labels=np.where(false, np.int8(PRESENT), truth)), truth == PRESENT


class Federation:
    """A few clients, the mean of their models and the sums of their rounds: what a run does, with the truth at hand."""

    def __init__(self, method, clients, **settings):
        values = {"model": "small_cnn(width=8)", "batch_size": 16, "learning_rate": 5e-3, "local_epochs": 2}
        self.settings = Experiment(method=method, **{**values, **settings})
        self.learner = build_learner(self.settings, NAMES, (SIDE, SIDE, 1))
        self.clients, self.flat = clients, self.learner.resident.flat.clone()
        self.memory, self.shared, self.told = {c.client: {} for c, _ in clients}, {}, []
        declared = self.learner.method.round_sums
        if declared is not None:
            self.shared = {
                ROUND_SUMS + name: zeros for name, zeros in declared(self.learner.resident.network, len(NAMES)).items()
            }

    def play(self, number):
        flats, sums, told = [], {}, []
        for shard, _ in self.clients:
            self.learner.resident.load(self.flat)
            local = Local(self.settings, number, shard.client, torch.device("cpu"), lambda: None, self.flat)
            local = replace(local, memory=dict(self.memory[shard.client]), shared=self.shared)
            told.append(self.learner.method.train(self.learner.resident, shard, local))
            self.memory[shard.client] = {name: kept.clone() for name, kept in local.memory.items()}
            flats.append(self.learner.resident.flat.clone())
            for name, tensor in local.round_sums.items():
                sums[ROUND_SUMS + name] = sums.get(ROUND_SUMS + name, 0) + tensor
        self.flat, self.told = torch.stack(flats).mean(0), told
        self.shared = {**self.shared, **sums}

    def judged(self):
        """Of the model on every client's candidates: probabilities, and which are true."""
        network = self.learner.resident.network.eval()
        self.learner.resident.load(self.flat)
        found = []
        for shard, true in self.clients:
            with torch.no_grad():
                probs = torch.sigmoid(network(to_float(shard.images.take(shard.rows)))).numpy()
            found.append((probs[shard.labels == PRESENT], true[shard.labels == PRESENT]))
        return [np.concatenate(column) for column in zip(*found, strict=True)]

    def selection(self):
        """Of clients' candidates: which they have selected, and which are true."""
        used, true = [], []
        for shard, is_true in self.clients:
            candidates = shard.labels == PRESENT
            used.append(self.memory[shard.client][PREFIX + "selected"].numpy()[candidates])
            true.append(is_true[candidates])
        return np.concatenate(used), np.concatenate(true)


def precision_recall(used, true):
    return (used & true).sum() / max(used.sum(), 1), (used & true).sum() / true.sum()


QUIET = "weak='none', jitter=0.0, cutout=0.0"


@pytest.fixture(scope="module")
def plain():
    """Clients with planted false candidates, and what plain BCE, trained on all, selects by the same threshold."""
    people = [client(number, num_images=96) for number in (1, 2)]
    federation, history = Federation("bce()", people, learning_rate=1e-2), []
    for number in range(1, 11):
        federation.play(number)
        probs, true = federation.judged()
        history.append((probs >= 0.6, true))
    return people, history


def found(history):
    """Means over the rounds: precision, recall and F1 of what is used, then of the false ones that are left out."""
    rows = []
    for used, true in history:
        sides = [precision_recall(used, true), precision_recall(~used, ~true)]
        rows.append([number for p, r in sides for number in (p, r, 2 * p * r / max(p + r, 1e-9))])
    return dict(zip(("p", "r", "f1", "false p", "false r", "false f1"), np.mean(rows, axis=0), strict=True))


@pytest.mark.parametrize("difficulty", [pytest.param("none", marks=pytest.mark.slow), "client", "global"])
def test_planted_false_candidates_are_recovered_better_than_by_plain_bce_by_precision_and_recall(plain, difficulty):
    """BCE leaves out few and is nearly always right about them; the method finds many more and is rarely wrong.

    So each is ahead in one of the two numbers, and F1 of both decides. BCE's own training uses every candidate.
    """
    people, baseline = plain
    ours = Federation(f"pml_cdcr(difficulty='{difficulty}', warm_up=6, {QUIET})", people, learning_rate=1e-2)
    history = []
    for number in range(1, 11):
        ours.play(number)
        history.append(ours.selection())

    used, true = history[5]
    assert used.all()  # the warm-up uses all
    mine, bce, everything = found(history[7:]), found(baseline[7:]), found([(np.ones_like(true), true)])
    shown = (mine, bce, everything)
    assert mine["p"] > bce["p"] + 0.05, shown
    assert mine["false r"] > bce["false r"] + 0.1, shown
    assert mine["f1"] > bce["f1"] + 0.005 > everything["f1"], shown
    assert mine["false f1"] > bce["false f1"] + 0.05 > everything["false f1"], shown
    assert mine["r"] > 0.85, shown


def test_the_strong_view_has_randaugment_in_place_of_other_colours(monkeypatch):
    asked = []

    def view(images, rng, **options):
        asked.append(options)
        return strong_view(images, rng, **options)

    monkeypatch.setattr("fedmlic.methods.pml_cdcr.strong_view", view)
    ours = Federation("pml_cdcr(strong='randaugment', cutout=0.25, weak='flip')", [client(1, num_images=8)])
    ours.play(1)

    assert len(asked) == 2
    assert all(o["randaugment"] and o["cutout"] == 0.25 and o["weak"] == "flip" for o in asked)
    with pytest.raises(InputError, match=r"no jitter with strong='randaugment', got jitter=0\.4"):
        spec.build("method", "pml_cdcr(strong='randaugment', jitter=0.4)")


def test_labels_are_left_out_and_come_back():
    """The selection is made anew in every pass: thresholds alone decide, whatever was left out before."""
    people = [client(1, num_images=32)]
    ours = Federation(f"pml_cdcr(difficulty='none', warm_up=0, {QUIET})", people, local_epochs=1)
    seen = []
    for number in range(1, 9):
        ours.play(number)
        seen.append(ours.memory[1][PREFIX + "selected"].clone())
        kept = int((seen[-1].numpy() & (people[0][0].labels == PRESENT)).sum())
        assert ours.told[0].metrics["selected-per-label"] == kept / len(NAMES)

    pairs = list(itertools.pairwise(seen))
    assert any((before & ~after).any() for before, after in pairs)
    assert any((~before & after).any() for before, after in pairs)


def test_the_last_round_of_the_warm_up_adds_up_what_the_next_needs():
    people = [client(number, num_images=16) for number in (1, 2)]
    ours = Federation(f"pml_cdcr(difficulty='global', warm_up=2, {QUIET})", people, local_epochs=1)
    ours.play(1)
    assert not any(tensor.any() for tensor in ours.shared.values())

    probs, _ = ours.judged()
    ours.play(2)

    counts = sum(torch.from_numpy((shard.labels == PRESENT).sum(0)) for shard, _ in people)
    assert torch.equal(ours.shared[ROUND_SUMS + COUNTS], counts)
    total = ours.shared[ROUND_SUMS + PROBABILITIES].sum() / FIXED_POINT
    assert total.item() == pytest.approx(probs.sum(), rel=1e-4)


def test_a_label_whose_probabilities_alone_are_withheld_has_the_level_as_threshold():
    """By hand: 0.6 for that label; for the others 0.6 + mu_c - mu, over the others alone."""
    people = [client(number, num_images=32) for number in (1, 2)]
    ours = Federation(f"pml_cdcr(difficulty='global', warm_up=2, {QUIET})", people, local_epochs=1)
    ours.play(1)
    ours.play(2)
    sums, counts = (ours.shared[ROUND_SUMS + name] for name in (PROBABILITIES, COUNTS))
    assert counts[0] > 0
    sums[0] = 0  # as the server gives it where too few clients have a sum above 0
    means = (sums[1:] / FIXED_POINT / counts[1:]).tolist()
    overall = float(sums[1:].sum()) / FIXED_POINT / int(counts[1:].sum())
    least = np.array([0.6, *(0.6 + mean - overall for mean in means)])
    ours.learner.resident.load(ours.flat)
    network = ours.learner.resident.network.eval()
    with torch.no_grad():
        probs = [torch.sigmoid(network(to_float(shard.images.take(shard.rows)))).numpy() for shard, _ in people]

    ours.play(3)

    for (shard, _), p in zip(people, probs, strict=True):
        wanted = (shard.labels != PRESENT) | (p >= least)
        np.testing.assert_array_equal(ours.memory[shard.client][PREFIX + "selected"].numpy(), wanted)


def test_a_turn_that_ends_within_a_pass_keeps_its_selection():
    people = [client(1, num_images=32)]
    ours = Federation(f"pml_cdcr(difficulty='none', warm_up=0, {QUIET})", people, local_epochs=1, local_steps=1)
    ours.play(1)
    first = ours.memory[1][PREFIX + "selected"].clone()
    ours.play(2)

    assert torch.equal(ours.memory[1][PREFIX + "selected"], first)
    assert ours.memory[1][PREFIX + "passes"].tolist() == [32, 0]


RUN = {
    "method": "pml_cdcr(difficulty='global', warm_up=1, consistency=0.1)",
    "regime": "candidate_sets(probability=0.1)",
    "allow_statistics": True,
    "statistics_min_clients": 2,
    "num_rounds": 3,
}


def test_one_hash_killed_or_not_and_the_rounds_sums_are_kept_with_the_model(play, tmp_path, monkeypatch):
    expected = play(tmp_path / "whole", **RUN)
    original, calls = rounds.Rounds._require_enough, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "_require_enough", killed)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path / "run", **RUN)
    result = engine.resume(tmp_path / "run")

    assert expected["weights_sha256"] == result["weights_sha256"]
    tensors, _ = open_run(tmp_path / "run").load_checkpoint(3)
    counts = tensors[f"shared/{ROUND_SUMS}{COUNTS}"]
    played = [e for e in open_run(tmp_path / "run").events() if e["event"] == "client" and e["round"] == 3]
    assert not any(event.get("error") for event in played)
    place, last = FolderMemory(tmp_path / "run" / "memory"), dict(tensors["last-turns"].tolist())
    kept = [place.recall(event["client"], last[event["client"]]) for event in played]
    assert all({PREFIX + "selected", PREFIX + "judged", PREFIX + "of", PREFIX + "passes"} == set(each) for each in kept)
    assert 0 < int(counts.sum()) <= sum(each[PREFIX + "selected"].numel() for each in kept)


def test_a_client_whose_selection_leaves_nothing_is_counted():
    people = [client(1, num_images=16)]
    empty, full = (
        Federation(f"pml_cdcr(difficulty='none', warm_up=1, level={level}, {QUIET})", people, local_epochs=1)
        for level in (1, 0)
    )
    counted = []
    for ours in (empty, full):
        for number in (1, 2):
            ours.play(number)
            counted.append(ours.told[0].metrics[EMPTIED])

    assert counted == [0, 1, 0, 0]  # the warm-up uses all
    assert empty.told[0].metrics["selected-per-label"] == 0


def test_what_a_round_without_selection_says():
    assert not nothing_left({"selected-per-label": 0.0, EMPTIED: 0.0})  # clients without a candidate
    assert not nothing_left({})
    assert nothing_left({"selected-per-label": 7.0, EMPTIED: 2.0}).startswith("some clients' selection leaves none")
    assert nothing_left({"selected-per-label": 0.0, EMPTIED: 2.0}).startswith(
        "the selection leaves no candidate at any"
    )


@pytest.mark.parametrize(("level", "warned"), [(1, 1), (0, 0)])
def test_a_run_whose_selection_leaves_nothing_says_so_once(play, tmp_path, level, warned):
    method = f"pml_cdcr(difficulty='none', warm_up=1, level={level})"
    play(tmp_path / "run", **{**RUN, "method": method, "num_rounds": 4})

    texts = [event["text"] for event in open_run(tmp_path / "run").events() if event["event"] == "warning"]
    found = [text for text in texts if "selection" in text]
    assert len(found) == warned
    assert all(text.startswith("round 2: the selection leaves no candidate at any client") for text in found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"allow_statistics": False}, "Expected allow-statistics=true"),
        ({"statistics_min_clients": 9}, "Expected a cohort of at least 9 clients"),
    ],
)
def test_global_thresholds_need_leave_and_enough_clients(tiny, changes, told):
    experiment, runtime = tiny(**{**RUN, **changes})

    with pytest.raises(InputError, match=told):
        check_experiment(experiment, runtime)


def test_clients_that_are_not_known_yet_are_enough(tiny):
    found = {"partition": "natural()", "num_clients": 0, "cohort_size": 0, "statistics_min_clients": 5}

    check_experiment(*tiny(**{**RUN, **found}))
    with pytest.raises(InputError, match="Expected a cohort of at least 5 clients"):
        check_experiment(*tiny(**{**RUN, **found, "cohort_size": 4}))

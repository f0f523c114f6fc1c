"""HP-DVAL: scores against loops, loss against timm, what trains in which stage, and what is sent."""

import importlib.util
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmlic import prompt_tuning
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime
from fedmlic.labels import UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local, scalar_and_rest
from fedmlic.methods import hp_dval
from fedmlic.methods.hp_dval import CONTEXTS, Scoring, fused
from fedmlic.pixel_scale import to_float
from fedmlic.prompt_learner import Reader, TextHalf, random_reader
from fedmlic.shard import Shard
from fedmlic.vision_transformer import Shape
from strategies.server.check import check_experiment

CLIP = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "clip_folder.py"))
NAMES = ("cat", "dog", "kite")
VIT = "clip_image(trainable='last(1)', projection=True)"
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="CLIP's tokenizer")


class Pixels:
    """Images in memory, as a shard reads them."""

    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def settings(method="", model=VIT, **changes):
    arguments = ", ".join(filter(None, ["weights='random'", "counts='client'", method]))
    values = {"batch_size": 4, "local_epochs": 1, "learning_rate": 1e-2, "clip_norm": 0.0, "weight_decay": 0.0}
    return Experiment(method=f"hp_dval({arguments})", model=model, **{**values, **changes})


def learner(names=NAMES, **changes):
    return build_learner(settings(**changes), names, (32, 32, 3))


def data(num_images=9, num_labels=3, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, (num_images, num_labels)).astype(np.int8)
    names = tuple(f"label {n}" for n in range(num_labels))
    nothing = np.zeros(0, dtype=np.int64)
    return Shard(3, names, Pixels(pixels), np.arange(num_images), labels, nothing, np.zeros((0, num_labels), np.int8))


def play_phase(learned, shard, number=None, **changes):
    """A turn of a phase (None: of the method without phases); returns names of the tensors that it changed."""
    method, resident, experiment = learned.method, learned.resident, settings(**changes)
    phase = None if number is None else method.phases[number]
    before = {n: t.clone() for n, t in resident.network.state_dict().items()}
    resident.train_only(None if phase is None or phase.tensors is None else phase.tensors(resident.network))
    local = Local(experiment, 1 + (number or 0), 3, torch.device("cpu"), lambda: None)
    trained = (method if phase is None else phase).train(resident, shard, local)
    resident.train_only(None)
    after = resident.network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}, trained


# Scores


@pytest.mark.parametrize("top", [1, 3, 5, 99])
def test_scores_are_those_of_a_plain_loop(top):
    rng = np.random.default_rng(0)
    views, whole, places = rng.normal(size=(2, 6, 4)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = np.zeros((2, 3))
    for i in range(2):
        for c in range(3):
            local = sorted((cosine(places[c], views[i, j]) for j in range(1, 6)), reverse=True)[:top]
            expected[i, c] = 0.4 * cosine(whole[c], views[i, 0]) + 0.6 * np.mean(local)

    found = fused(*(torch.tensor(each) for each in (views, whole, places)), Scoring(0.4, top, "cosine"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_view_with_large_products_does_not_drown_the_other():
    views, texts = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]]), torch.eye(2)

    found = fused(views, texts, texts, Scoring(0.5, 1, "mkt"))

    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize(("scale", "moved"), [(1.0, ()), (20.0, ()), (20.0, ("whole",)), (20.0, ("whole", "places"))])
def test_scores_of_the_release_are_products_each_view_divided_by_its_length(scale, moved, monkeypatch):
    """The network's logits against a plain loop, with views and texts of very different lengths."""

    def uneven(weights, model, features, seed, who):
        del weights, model, who
        reader = random_reader(features, seed)
        reader.half.projection[:, 1:] *= 0.05  # a norm comes before: else all texts are about as long
        return reader

    monkeypatch.setattr(hp_dval, "open_reader", torch.no_grad()(uneven))
    method = f"scores='mkt', alpha=0.3, top=2, scale={scale}"
    network = learner(method=method).resident.network.eval()
    images = to_float(data().images.pixels)
    with torch.no_grad():
        network.backbone.tower.projection.weight.mul_(3.0)
        for view in moved:
            network.get_parameter(f"context_{view}").add_(0.5)
        found = network(images)
        views = network.views(images).double().numpy()
        contexts = [network.get_parameter(f"context_{view}") for view in ("whole", "places")]
        given = [network.learner(each[None])[0].double().numpy() for each in contexts]
        written = network.learner(network.learner.template_context[None])[0].double().numpy()
        texts = [row if view in moved else written for view, row in zip(("whole", "places"), given, strict=True)]

    lengths = np.linalg.norm(written, axis=1)
    assert lengths.max() > 1.1 * lengths.min()
    for i, image in enumerate(views):
        whole, places = np.zeros(3), np.zeros(3)
        for c in range(3):
            whole[c] = image[0] @ texts[0][c]
            places[c] = np.mean(sorted((view @ texts[1][c] for view in image[1:]), reverse=True)[:2])
        expected = 0.3 * whole / np.sqrt((whole**2).sum()) + 0.7 * places / np.sqrt((places**2).sum())
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_the_length_of_a_hand_written_text_decides_an_order_of_the_release():
    """Text 0 is twice as long as text 1: with texts of length 1 label 1 would be first."""
    views, texts = torch.tensor([[[1.0, 1.5], [1.0, 1.5]]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])

    found = fused(views, texts, texts, Scoring(0.5, 1, "mkt"))

    torch.testing.assert_close(found, torch.tensor([[0.8, 0.6]]))


# Loss


@pytest.mark.parametrize("stage", [0, 1])
def test_the_loss_is_timms_beside_what_the_stage_adds(stage):
    timm = pytest.importorskip("timm.loss")
    learned, shard = learner(method="distill=2.0, consistency=3.0"), data()
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    labels = torch.from_numpy(shard.labels)
    with torch.no_grad():
        network.backbone.tower.projection.weight.mul_(0.7)
        objective = learned.method.phases[stage].objective
        local = Local(settings(), 1, 3, torch.device("cpu"), lambda: None, shard=shard)
        given = objective.inputs(local).of(images, labels, torch.arange(9))
        found, _ = scalar_and_rest(objective.loss(network, images, labels, *given))
        scores = network(network.views(images), "scores", *([network(images, "texts")] if stage else []))
        theirs = timm.DistributionBalancedLoss(labels.sum(dim=0), len(labels))(scores, labels)
        if stage == 0:
            own, target = network.views(images)[:, 0], network.teacher(images)[:, :, 0, 0]
            added = 2.0 * (own - target).abs().mean()
        else:
            unit = [each / each.norm(dim=1, keepdim=True) for each in network(images, "texts")]
            added = 3.0 * (unit[0] - unit[2]).abs().mean()

    assert added > 0
    torch.testing.assert_close(found, theirs + added)


def loss_of_prompts(learned, shard):
    """What stage 2 minimises, on all nine images of a client, as a number."""
    network, images = learned.resident.network, to_float(shard.images.pixels)
    labels, objective = torch.from_numpy(shard.labels), learned.method.phases[1].objective
    given = objective.inputs(Local(settings(), 2, 3, torch.device("cpu"), lambda: None, shard=shard))
    with torch.no_grad():
        value = objective.loss(network, images, labels, *given.of(images, labels, torch.arange(9)))
    return scalar_and_rest(value)[0].item()


@pytest.mark.parametrize("view", ["whole", "places"])
@pytest.mark.parametrize("explicit", [True, False])
def test_texts_of_the_prompted_view_are_held_near_the_handwritten_ones(view, explicit):
    """With one prompted view the others' texts are the hand-written ones: comparing those would cost nothing."""
    told = f", consistent_view={view!r}" if explicit else ""
    values = []
    for weight in (0.0, 3.0):
        learned, shard = learner(method=f"prompted={view!r}, consistency={weight}{told}"), data()
        network = learned.resident.network.eval()
        values.append(loss_of_prompts(learned, shard))
        with torch.no_grad():
            trained = network.learner(network.get_parameter(f"context_{view}")[None])[0].numpy()
            written = network.learner.handwritten.numpy()
    trained = trained / np.linalg.norm(trained, axis=1, keepdims=True)

    expected = 3.0 * np.abs(trained - written).mean()
    assert expected > 0.01
    assert values[1] - values[0] == pytest.approx(expected, rel=1e-4)


def test_the_teacher_is_compared_by_features_as_they_are():
    """Not by features of length 1: both paper and release subtract what the towers give."""
    learned, shard = learner(method="distill=1.0, rebalance=False, focal=False"), data()
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    labels, objective = torch.from_numpy(shard.labels), learned.method.phases[0].objective
    local = Local(settings(), 1, 3, torch.device("cpu"), lambda: None, shard=shard)
    given = objective.inputs(local).of(images, labels, torch.arange(9))
    with torch.no_grad():
        begin = network.views(images)[:, 0].clone()
        same = objective.loss(network, images, labels, *given).item()
        network.backbone.tower.projection.weight.mul_(3.0)  # cosines, and so L_db, stay as they are
        found = objective.loss(network, images, labels, *given).item()

    assert found - same == pytest.approx(2 * begin.abs().mean().item(), rel=1e-3)


def test_db_star_is_a_plain_loop():
    learned, shard = learner(method="positive_share=True, distill=0.0, rebalance=False, focal=False"), data()
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    labels = torch.from_numpy(shard.labels)
    objective = learned.method.phases[0].objective
    local = Local(settings(), 1, 3, torch.device("cpu"), lambda: None, shard=shard)
    with torch.no_grad():
        found = objective.loss(network, images, labels, *objective.inputs(local).of(images, labels, torch.arange(9)))
        scores = network(images).double().numpy()
    counts = shard.labels.sum(axis=0)
    entries = []
    for i, c in np.ndindex(scores.shape):
        z = scores[i, c] - 0.05 / 2 * np.log(9 / counts[c] - 1)
        share = counts[c] / counts.max()
        entries.append(np.log1p(np.exp(-share * z)) if shard.labels[i, c] else np.log1p(np.exp(2 * z)) / 2)
    assert found.item() == pytest.approx(np.mean(entries), rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("missing", [False, True])
def test_one_focal_factor_of_the_batch_and_scaled_present_logits_are_a_plain_loop(stage, missing):
    """As the release computes its loss; logits are scaled in its first stage alone."""
    method = "focal_by='batch', present_scale=5.0, tolerance=3.0, distill=0.0, consistency=0.0"
    learned, shard = learner(method=method), data()
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    if missing:
        shard = replace(shard, labels=np.where(np.arange(27).reshape(9, 3) % 4, shard.labels, np.int8(UNKNOWN)))
    labels, objective = torch.from_numpy(shard.labels), learned.method.phases[stage].objective
    given = objective.inputs(Local(settings(), 1, 3, torch.device("cpu"), lambda: None, shard=shard))
    with torch.no_grad():
        value = objective.loss(network, images, labels, *given.of(images, labels, torch.arange(9)))
        found = scalar_and_rest(value)[0].item()
        texts = [network(images, "texts")] if stage else []
        scores = network(network.views(images), "scores", *texts).double().numpy()

    counts, sizes, levels = (shard.labels == 1).sum(axis=0), [], []
    for i, c in np.ndindex(scores.shape):
        if shard.labels[i, c] < 0:
            continue
        z = scores[i, c] - 0.05 / 3 * np.log(9 / counts[c] - 1)
        there = [1 / counts[j] for j in range(3) if shard.labels[i, j] == 1]
        ratio = 1 / counts[c] / sum(there) if there else np.inf
        weight = 0.1 + 1 / (1 + np.exp(-10 * (ratio - 0.2)))
        present = shard.labels[i, c] == 1
        level = np.log1p(np.exp(-(5 if stage == 0 else 1) * z)) if present else np.log1p(np.exp(3 * z))
        levels.append(level)
        sizes.append(weight * level / (1 if present else 3))

    assert found == pytest.approx(2 * (1 - np.exp(-np.mean(levels))) ** 2 * np.mean(sizes), rel=1e-4)


@pytest.mark.parametrize("scores", ["cosine", "mkt"])
def test_texts_are_held_near_the_handwritten_ones_as_the_scores_see_them(scores, monkeypatch):
    """Of length 1 where scores are cosines; as they are where scores are products, which the release compares."""

    def long(weights, model, features, seed, who):
        del weights, model, who
        reader = random_reader(features, seed)
        reader.half.projection *= 7.0
        return reader

    monkeypatch.setattr(hp_dval, "open_reader", torch.no_grad()(long))
    values = []
    for weight in (0.0, 3.0):
        learned, shard = learner(method=f"scores='{scores}', consistency={weight}"), data()
        network = learned.resident.network.eval()
        values.append(loss_of_prompts(learned, shard))
        with torch.no_grad():
            contexts = [network.context_whole, network.learner.template_context]
            trained, written = (network.learner(each[None])[0].numpy() for each in contexts)
    if scores == "cosine":
        trained, written = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (trained, written))

    expected = 3.0 * np.abs(trained - written).mean()
    assert expected > 0.01
    assert values[1] - values[0] == pytest.approx(expected, rel=1e-4)


# Stages


def test_each_stage_changes_its_tensors_and_no_others():
    learned, shard = learner(), data()

    first, _ = play_phase(learned, shard, 0)
    second, _ = play_phase(learned, shard, 1)

    assert second == set(CONTEXTS)
    assert "log_scale" in first
    last = tuple(f"backbone.tower.{part}" for part in ("blocks.3.", "norm.", "projection."))
    assert all(name.startswith((*last, "log_scale")) for name in first)
    assert any(name.startswith(last[0]) for name in first)


@pytest.mark.parametrize(
    ("schedule", "stage"),
    [("two_stages", 0), ("two_stages", 1), ("alignment", None), ("prompts", None), ("joint", None)],
)
def test_a_client_without_annotations_takes_no_step_in_any_stage(schedule, stage):
    """Teacher and hand-written texts would pull it, and its images count among those of the others."""
    learned, shard = learner(method=f"schedule={schedule!r}"), data()
    with torch.no_grad():
        learned.resident.network.backbone.tower.projection.weight.mul_(0.7)  # else the teacher is where it is
    nothing = replace(shard, labels=np.full_like(shard.labels, UNKNOWN))
    one = shard.labels.copy()
    one[1:] = one[0, 1:] = UNKNOWN

    changed, trained = play_phase(learned, nothing, stage, weight_decay=0.1)
    assert (changed, trained.num_steps, trained.loss) == (set(), 0, 0.0)
    changed, trained = play_phase(learned, replace(shard, labels=one), stage)
    assert changed
    assert trained.num_steps == 3


def test_the_teacher_stays_where_the_student_began():
    learned, shard = learner(method="distill=1.0"), data()
    network = learned.resident.network
    images = to_float(shard.images.pixels)
    begin = network.views(images)[:, 0].detach().clone()
    play_phase(learned, shard, 0, local_epochs=2)

    with torch.no_grad():
        torch.testing.assert_close(network.teacher(images)[:, :, 0, 0], begin)
        assert (network.views(images)[:, 0] - begin).abs().max() > 1e-4


@pytest.mark.parametrize("start", ["normal", "template"])
def test_before_the_second_stage_predictions_are_those_of_the_template(start):
    template = "a photo of a {}" if start == "normal" else "so {}"
    context = 4 if start == "normal" else 2
    method = f"start={start!r}, template={template!r}, context_length={context}"
    learned, shard = learner(method=method), data()
    network, rows = learned.resident.network, np.arange(9)

    play_phase(learned, shard, 0)
    found = learned.predict(shard.images, rows)
    with torch.no_grad():
        views = network.views(to_float(shard.images.pixels))
        np.testing.assert_allclose(found, torch.sigmoid(network(views, "scores")), atol=1e-6)
    play_phase(learned, shard, 1)
    with torch.no_grad():
        expected = torch.sigmoid(network(views, "scores", network(views, "texts")))
    again = learned.predict(shard.images, rows)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    assert np.abs(again - found).max() > 1e-4


def test_views_are_computed_once_a_turn_while_the_tower_stays(monkeypatch):
    shard, calls, results = data(), [], []
    for limit in (2**30, -1):
        monkeypatch.setattr(prompt_tuning, "LARGEST_CACHE", limit)
        learned = learner()
        handle = learned.resident.network.backbone.register_forward_hook(lambda *_, limit=limit: calls.append(limit))
        results.append((play_phase(learned, shard, 1, local_epochs=3)[1].loss, learned.resident.flat.clone()))
        handle.remove()

    assert (calls.count(2**30), calls.count(-1)) == (3, 9)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_augmented_views_are_computed_anew():
    learned, calls = learner(augmentation="flip"), []
    learned.resident.network.backbone.register_forward_hook(lambda *_: calls.append(1))
    play_phase(learned, data(), 1, local_epochs=3, augmentation="flip")
    assert len(calls) == 9


SCHEDULES = {"alignment": {"log_scale"}, "prompts": set(CONTEXTS), "joint": {"log_scale", *CONTEXTS}}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_stretch_of_rounds_sends_what_it_trains(schedule):
    learned = learner(method=f"schedule={schedule!r}")

    changed, _ = play_phase(learned, data())

    assert not learned.method.phases
    assert changed == set(learned.resident.layout.names)
    assert {name for name in changed if not name.startswith("backbone.")} == SCHEDULES[schedule]
    assert any(name.startswith("backbone.") for name in changed) == (schedule != "prompts")


def test_adapters_and_the_scale_are_all_that_the_first_stage_sends():
    learned = learner(model="clip_image(trainable='lora(2)', projection=True)")

    names = set(learned.method.phases[0].tensors(learned.resident.network)) - {"log_scale"}

    assert names
    assert all("lora_" in name for name in names)
    assert set(learned.resident.layout.names) == names | {"log_scale", *CONTEXTS}


def test_statistics_of_norms_are_exchanged_of_the_student_alone():
    learned = learner(model="small_cnn(width=4, num_blocks=0, norm='pooled')")

    first, _ = play_phase(learned, data(), 0)
    second, _ = play_phase(learned, data(), 1)

    assert {name for name in first if "running_mean" in name}
    assert not {name for name in first if name.startswith("teacher")}
    assert not [name for name in learned.resident.layout.names if name.startswith("teacher")]
    assert second == set(CONTEXTS)


# Runs


def test_a_run_sends_only_prompts_in_the_second_stage(play, tmp_path, monkeypatch):
    """In the paper's size: 2 contexts of 4 vectors of 512 numbers."""

    def wide(weights, model, features, seed, who):
        del weights, model, who
        small = random_reader(features, seed)
        half = TextHalf(Shape(512, 1, 8, 8, patch=1, grid=1), 77, features).eval()
        return Reader(half, torch.randn(258, 512, generator=torch.Generator().manual_seed(0)), *small[2:])

    monkeypatch.setattr(hp_dval, "open_reader", wide)
    from fedmlic.record import open_run

    play(
        tmp_path / "run",
        method="hp_dval(weights='random', align_rounds=1)",
        num_rounds=2,
        allow_statistics=True,
        statistics_min_clients=1,
        statistics_min_images=1,
    )
    events = [each for each in open_run(tmp_path / "run").events() if each["event"] == "client" and each["round"]]

    sizes = [{event["bytes-up"] for event in events if event["round"] == number} for number in (1, 2)]
    assert sizes[1] == {4 * 4096}
    assert sizes[0] != sizes[1]
    assert any(each["event"] == "statistics" for each in open_run(tmp_path / "run").events())


def test_a_private_context_stays_at_its_client():
    learned = learner(method="schedule='prompts', local_context='private'")

    assert learned.resident.private_names == ("context_places",)
    assert learned.resident.layout.names == ("context_whole",)


def test_a_context_that_nobody_has_trained_has_no_part_in_predictions():
    """So it is at a client that keeps its own context of places and was not drawn yet: the other one came trained."""
    learned, shard = learner(method="local_context='private'"), data()
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    with torch.no_grad():
        network.context_whole.add_(0.5)
        whole = network.learner(network.context_whole[None])[0]
        written = network.learner.handwritten
        views = network.views(images)
        unit = [each / each.norm(dim=-1, keepdim=True) for each in (views, whole)]
        local = (unit[0][:, 1:] @ written.T).mean(dim=1)  # there are fewer places than top
        expected = torch.sigmoid(20 * (0.4 * unit[0][:, 0] @ unit[1].T + 0.6 * local))

    found = learned.predict(shard.images, np.arange(9))

    np.testing.assert_allclose(found, expected, atol=1e-5)
    with torch.inference_mode():
        asked = learned.method.ask(network, learned.task, ["dog"])(images)
    np.testing.assert_allclose(asked[:, 0], expected[:, 1], atol=1e-5)
    with torch.no_grad():
        network.context_places.add_(0.5)
    assert np.abs(learned.predict(shard.images, np.arange(9)) - found).max() > 1e-3


@pytest.mark.parametrize("view", ["whole", "places"])
def test_one_prompted_view_leaves_the_other_its_handwritten_texts(view):
    learned, shard = learner(method=f"prompted={view!r}"), data()
    network = learned.resident.network

    changed, _ = play_phase(learned, shard, 1)

    assert changed == {f"context_{view}"}
    assert [name for name in learned.resident.layout.names if "context" in name] == [f"context_{view}"]
    whole, places, written = network(torch.zeros(0), "texts")
    trained, other = (whole, places) if view == "whole" else (places, whole)
    assert torch.equal(other, written)
    assert not torch.allclose(trained, written, atol=1e-3)


def test_prompts_for_whole_images_without_balance_are_prompts_by_cross_entropy():
    """PromptFL: one context on a fixed tower, which is all that is sent."""
    method = (
        "schedule='prompts', alpha=1.0, prompted='whole', consistency=0.0, rebalance=False, kappa=0.0, "
        "tolerance=1.0, focal=False"
    )
    learned, shard = learner(method=method), data()
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    labels = torch.from_numpy(shard.labels)
    given = learned.method.objective.inputs(Local(settings(), 1, 3, torch.device("cpu"), lambda: None, shard=shard))
    with torch.no_grad():
        value = learned.method.objective.loss(network, images, labels, *given.of(images, labels, torch.arange(9)))
        found, _ = scalar_and_rest(value)
        logits = network(network(images, "views"), "scores", network(images, "texts"))
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())

    assert learned.resident.layout.names == ("context_whole",)
    torch.testing.assert_close(found, expected)


@needs_open_clip
def test_a_folder_of_both_halves(tmp_path):
    path = CLIP["folder"](tmp_path / "clip")
    model = f"clip_image(path={path!r}, projection=True, trainable='lora(2)')"
    experiment = Experiment(
        method=f"hp_dval(weights={path!r}, counts='client')", model=model, batch_size=4, local_epochs=1
    )
    learned = build_learner(experiment, NAMES, (32, 32, 3))
    text = {n: t.clone() for n, t in learned.resident.network.learner.state_dict().items()}

    assert play_phase(learned, data(), 0)[0]
    assert play_phase(learned, data(), 1)[0] == set(CONTEXTS)
    assert all(torch.equal(t, text[n]) for n, t in learned.resident.network.learner.state_dict().items())
    assert isinstance(learned.resident.network.embedding, torch.nn.Identity)


@pytest.mark.parametrize("moved", [(), ("whole",), ("whole", "places")])
@pytest.mark.parametrize("scores", ["cosine", "mkt"])
def test_a_runs_state_brings_its_text_half(scores, moved):
    """As ``load_predictor`` loads it into a network that was built from other weights since."""
    here, there = (learner(method=f"scores={scores!r}", seed=seed).resident.network.eval() for seed in (0, 1))
    for view in moved:
        here.get_parameter(f"context_{view}").data.add_(0.5)
    images = to_float(data().images.pixels)
    with torch.inference_mode():
        expected, before = here(images), there(images)
        own = there.state_dict()
        for name, tensor in here.state_dict().items():
            own[name].copy_(tensor)
        found = there(images)

    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(found, expected)


# Sizes


@pytest.mark.parametrize("num_labels", [1, 1628])
def test_one_label_and_many(num_labels):
    names = tuple(f"label {n}" for n in range(num_labels))
    learned = build_learner(settings(), names, (32, 32, 3))
    shard = data(2, num_labels)

    for stage in (0, 1):
        changed, trained = play_phase(learned, shard, stage, batch_size=1)
        assert np.isfinite(trained.loss)
        assert changed
    probs = learned.predict(shard.images, np.arange(2))
    assert probs.shape == (2, num_labels)
    assert np.isfinite(probs).all()


# Names asked for after training


def test_a_name_of_the_training_has_its_score_and_others_do_not_change_it():
    learned, shard = learner(), data()
    play_phase(learned, shard, 1)
    network, images = learned.resident.network.eval(), to_float(shard.images.pixels)
    with torch.inference_mode():
        probs = learned.method.predict(network, images)
        few = learned.method.ask(network, learned.task, ["dog"])(images)
        many = learned.method.ask(network, learned.task, ["a new one", "dog"])(images)

    torch.testing.assert_close(few[:, 0], probs[:, 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many[:, 1], few[:, 0], rtol=1e-5, atol=1e-6)
    other = learner(method="scores='mkt'")
    with pytest.raises(InputError, match="scores='cosine'"):
        other.method.ask(other.resident.network, other.task, ["dog"])


# What is refused


@pytest.mark.parametrize(("prompted", "view"), [("whole", "places"), ("places", "whole")])
def test_texts_that_do_not_train_cannot_be_held_anywhere(prompted, view):
    pair = f"prompted={prompted!r}, consistent_view={view!r}"
    with pytest.raises(InputError, match=f"consistent_view to be '{prompted}', the prompted view, got '{view}'"):
        learner(method=pair)
    assert learner(method=f"{pair}, consistency=0.0")
    assert learner(method=f"{pair}, schedule='alignment'")


def test_a_run_that_ends_before_the_second_stage_is_refused():
    with pytest.raises(InputError, match="rounds after align_rounds=20, and num-rounds is 12"):
        check_experiment(settings(num_rounds=12), Runtime())
    with pytest.raises(InputError, match="rounds after align_rounds=4, and num-rounds is 4"):
        check_experiment(settings("align_rounds=4", num_rounds=4), Runtime())

    check_experiment(settings("align_rounds=4", num_rounds=5), Runtime())
    for schedule in SCHEDULES:
        check_experiment(settings(f"schedule={schedule!r}", num_rounds=1), Runtime())


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("present_scale=5.0, schedule='prompts'", "present_scale to be 1 with schedule='prompts'"),
        ("present_scale=5.0, schedule='joint'", "present_scale to be 1 with schedule='joint'"),
        ("focal_by='batch', focal=False", "focal_by to be 'entry'"),
    ],
)
def test_options_of_the_loss_that_would_change_nothing_are_refused(method, told):
    with pytest.raises(InputError, match=told):
        learner(method=method)


@pytest.mark.parametrize("other", ["prompted='whole'", "schedule='alignment'"])
def test_a_context_that_does_not_train_cannot_be_private(other):
    with pytest.raises(InputError, match=f"a context of places that trains, got {other}"):
        learner(method=f"local_context='private', {other}")
    assert learner(method=other)


def test_scores_divided_by_their_length_need_a_second_label():
    for schedule in ("two_stages", *SCHEDULES):
        with pytest.raises(InputError, match=r"2 labels or more with scores='mkt'.* got 1.*scores='cosine'"):
            learner(("cat",), method=f"scores='mkt', schedule={schedule!r}")

    shard = data(num_labels=2)
    learned = learner(("cat", "dog"), method="scores='mkt'")
    before = learned.predict(shard.images, np.arange(9))
    play_phase(learned, shard, 0)
    assert np.abs(learned.predict(shard.images, np.arange(9)) - before).max() > 1e-4


def test_without_weights_the_file_to_get_is_named():
    with pytest.raises(InputError, match=r"clip-vit-base-patch16.*weights='random'"):
        build_learner(Experiment(method="hp_dval()", model=VIT), NAMES, (32, 32, 3))


@needs_open_clip
def test_what_does_not_fit_is_refused(tmp_path):
    path = CLIP["folder"](tmp_path / "clip")

    def built(method, model):
        return build_learner(Experiment(method=f"hp_dval(weights={path!r}, {method})", model=model), NAMES, (32, 32, 3))

    with pytest.raises(InputError, match="own teacher, to have weights"):
        built("top=2", "small_cnn(width=4)")
    with pytest.raises(InputError, match=r"teacher's features .* width 12, got 24"):
        built("top=2", f"clip_image(path={path!r})")
    with pytest.raises(InputError, match=r"width 12, got 24: nothing between them trains"):
        built("schedule='prompts'", f"clip_image(path={path!r})")
    teacher = f"clip_image(path={path!r}, projection=True)"
    other = built(f"counts='client', teacher={teacher!r}", "small_cnn(width=4, num_blocks=0)")
    assert other.method.needs_pixels
    changed, _ = play_phase(other, data(), 0)
    assert {name.split(".")[0] for name in changed} == {"embedding", "backbone", "log_scale"}

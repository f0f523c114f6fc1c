"""fedalign: closeness by hand in NumPy, a linear classifier as its limit, parts of a turn, pseudo-labels by loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.methods.fedalign import AnchorNetwork, class_weights, completed, pseudo_labels, weighted_loss
from fedmlic.pixel_scale import to_float
from fedmlic.shard import Shard
from fedmlic.spec import build
from fedmlic.text import LabelVectors, label_vectors
from fedmlic.update import Update, units_for
from strategies.server.check import check_experiment
from strategies.strategy import Round, State

NAMES = ("zero", "one", "two")
SIDE = 8


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def data(num_images=10, known=(0, 1)):
    """A client that annotates some of the labels only."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (num_images, len(NAMES))).astype(np.int8)
    labels[:, [label for label in range(len(NAMES)) if label not in known]] = UNKNOWN
    pixels = rng.integers(0, 255, (num_images, SIDE, SIDE, 1)).astype(np.uint8)
    return Shard(0, NAMES, Pixels(pixels), np.arange(num_images), labels, np.zeros(0, np.int64), labels[:0])


def turn(text, shard, names=NAMES, **changes):
    """The learner after one turn, the tensors before it, what it told."""
    values = {"model": "small_cnn(width=4, num_blocks=0)", "batch_size": 5, "local_epochs": 2, **changes}
    experiment = Experiment(method=text, **values)
    learned = build_learner(experiment, names, (SIDE, SIDE, 1))
    before = {name: view.clone() for name, view in learned.resident.layout.views(learned.resident.flat)}
    teacher = learned.build_network(experiment).eval().requires_grad_(requires_grad=False)
    local = Local(experiment, 1, 0, torch.device("cpu"), lambda: teacher, learned.resident.flat.clone())
    return learned, before, learned.method.train(learned.resident, shard, local)


def after(learned):
    return dict(learned.resident.layout.views(learned.resident.flat))


class Fixed(nn.Module):
    """A backbone that gives its input as the map."""

    num_features = 2

    def forward(self, images):
        return images


def by_hand(pool):
    """Two places, two features, three anchors of width 2."""
    anchors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]], np.float32)
    network = AnchorNetwork(Fixed(), LabelVectors(anchors, False, ""), pool=pool, trained=True).double()
    with torch.no_grad():
        network.projection.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        network.projection.bias.copy_(torch.tensor([0.5, -1.0]))
    return network, anchors


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_closeness_by_hand(pool):
    network, anchors = by_hand(pool)
    places = np.array([[1.0, 2.0], [-1.0, 0.5]])

    mapped = places @ np.array([[2.0, 0.0], [1.0, 1.0]]).T + np.array([0.5, -1.0])
    each = mapped @ anchors.astype(np.float64).T
    np.testing.assert_allclose(each[0], [2.5, 2.0, 0.6 * 2.5 - 0.8 * 2.0], atol=1e-6)
    expected = {"mean": each.mean(0), "max": each.max(0), "logsumexp": np.log(np.exp(each).mean(0))}[pool]

    found = network(torch.from_numpy(places.T[None, :, :, None]))
    np.testing.assert_allclose(found[0].detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_permuted_labels_have_permuted_scores(pool):
    network, anchors = by_hand(pool)
    images, order = torch.randn(4, 2, 3, 3, dtype=torch.float64), [2, 0, 1]

    scores = network(images)
    network.anchors = nn.Parameter(torch.tensor(anchors[order], dtype=torch.float64))

    torch.testing.assert_close(network(images), scores[:, order])


def weights_by_hand(labels):
    """What every entry weighs, by counting: one over the other state's entries and one more, of all and two more."""
    found = np.zeros(labels.shape)
    for image, label in np.ndindex(labels.shape):
        column = labels[:, label].tolist()
        present, absent = column.count(1), column.count(0)
        other = {1: absent, 0: present}.get(labels[image, label])
        found[image, label] = 0 if other is None else (other + 1) / (present + absent + 2)
    return found


def test_the_loss_by_loop_over_a_batch_with_entries_that_nobody_annotated():
    labels = np.array([[1, 0, -1], [0, -2, -1], [0, 1, -1], [0, -1, -1]], np.int8)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = weights_by_hand(labels)
    np.testing.assert_allclose(weights[:, 0], [4 / 6, 2 / 6, 2 / 6, 2 / 6])
    np.testing.assert_allclose(weights[:, 1], [1 / 2, 0, 1 / 2, 0])

    found = weighted_loss(logits, torch.from_numpy(labels[:2]), class_weights(torch.from_numpy(labels)))

    total = 0.0
    for image, label in np.ndindex(2, 3):
        z = logits[image, label].item()
        total += weights[image, label] * {1: np.log1p(np.exp(-z)), 0: np.log1p(np.exp(z))}.get(labels[image, label], 0)
    assert found.item() == pytest.approx(total / 6, rel=1e-6)  # all entries, those that are not known too


@pytest.mark.parametrize("balanced", [True, False])
def test_with_fixed_anchors_a_turn_is_that_of_a_linear_classifier_with_these_rows(balanced):
    """The same steps by torch.optim on backbone, projection and rows that do not train."""
    shard = data(10, known=(0, 1, 2))
    text = f"fedalign(anchors='fixed', balanced={balanced})"
    learned, before, told = turn(text, shard, local_epochs=1, batch_size=10, learning_rate=1e-2)
    rows = torch.tensor(
        label_vectors("random_orthogonal()", NAMES, learned.resident.network.anchors.shape[1], 0).vectors
    )

    other = build_learner(Experiment(method="bce()", model="small_cnn(width=4, num_blocks=0)"), NAMES, (SIDE, SIDE, 1))
    backbone = other.resident.network.backbone
    projection = nn.Linear(backbone.num_features, rows.shape[1])
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.copy_(before[f"backbone.{name}"])
        projection.weight.copy_(before["projection.weight"])
        projection.bias.copy_(before["projection.bias"])
    steps = torch.optim.Adam([*backbone.parameters(), *projection.parameters()], lr=1e-2)
    logits = nn.functional.linear(projection(backbone(to_float(shard.images.pixels)).mean((2, 3))), rows)
    weights = torch.from_numpy(weights_by_hand(shard.labels)).float() if balanced else None
    targets = torch.from_numpy(shard.labels).float()
    loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=weights)
    loss.backward()
    steps.step()

    assert "anchors" not in before
    assert told.loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(after(learned)["projection.weight"], projection.weight.detach(), rtol=1e-4, atol=1e-5)


def test_anchors_of_labels_that_nobody_annotates_keep_their_values():
    for text in ("fedalign()", "fedalign(anchors='together')"):
        learned, before, _ = turn(text, data(known=(0, 2)))
        changed = (after(learned)["anchors"] != before["anchors"]).any(dim=1)

        assert changed.tolist() == [True, False, True], text


def test_both_sides_train_and_the_first_part_leaves_anchors_as_they_were():
    """With two steps the image side has one and the anchors one; with a single step only the image side."""
    learned, before, told = turn("fedalign()", data(), local_steps=1)
    assert torch.equal(after(learned)["anchors"], before["anchors"])
    assert not torch.equal(after(learned)["projection.weight"], before["projection.weight"])
    assert told.num_steps == 1

    single = after(learned)["projection.weight"].clone()
    learned, before, told = turn("fedalign()", data(), local_steps=2)
    assert told.num_steps == 2
    assert not torch.equal(after(learned)["anchors"], before["anchors"])
    assert torch.equal(after(learned)["projection.weight"], single)  # the second step moved anchors alone
    assert learned.resident.trained is None

    _, _, told = turn("fedalign()", data(), local_epochs=2, batch_size=5)
    assert told.num_steps == 2 * 2 * 2


@given(st.integers(1, 9), st.floats(0, 100), st.floats(0, 100), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pseudo_labels_by_loop(num_images, present, absent, seed):
    closeness = np.random.default_rng(seed).normal(size=(num_images, 2))

    found = pseudo_labels(torch.from_numpy(closeness), present, absent)

    for image, label in np.ndindex(num_images, 2):
        column, s = closeness[:, label], closeness[image, label]
        upper, lower = max(0.5, np.percentile(column, present)), min(0.5, np.percentile(column, absent))
        if min(abs(s - upper), abs(s - lower)) > 1e-9:  # percentiles are rounded differently
            assert found[image, label] == (PRESENT if s > upper else ABSENT if s < lower else UNKNOWN)


def test_pseudo_labels_are_given_to_labels_without_any_annotation_only():
    shard = data(12, known=(0, 1))
    shard.labels[3:, 0] = UNKNOWN
    learned, _, told = turn("fedalign(pseudo=True)", shard)
    experiment = Experiment(method="fedalign(pseudo=True)", model="small_cnn(width=4, num_blocks=0)")
    teacher = learned.build_network(experiment).eval()
    local = Local(experiment, 1, 0, torch.device("cpu"), lambda: teacher, shard=shard)

    answers = completed(local, 99.9, 99.9)

    assert torch.equal(answers[:, :2], torch.from_numpy(shard.labels[:, :2]))
    closeness = teacher(to_float(shard.images.pixels)).detach()
    assert torch.equal(answers[:, 2], pseudo_labels(closeness, 99.9, 99.9)[:, 2])
    given = learned.method.objective.inputs(local).of(torch.zeros(1), torch.zeros(1, 3), torch.arange(4))
    assert torch.equal(given[0], answers[:4])
    weights = torch.from_numpy(weights_by_hand(answers.numpy())[:4]).float()  # pseudo-labels are counted
    found = torch.where(given[0] == PRESENT, given[1][1], given[1][0]) * (given[0] >= ABSENT)
    torch.testing.assert_close(found, weights)
    assert told.metrics["pseudo-absent-per-label"] * 3 == pytest.approx(int((answers[:, 2] == ABSENT).sum()))
    assert build("method", "fedalign(pseudo=True)").guesses
    assert not build("method", "fedalign()").guesses


@pytest.mark.parametrize("text", ["fedalign()", "fedalign(pseudo=True)", "fedalign(anchors='together')"])
def test_one_label_one_image_and_nothing_known(text):
    for num_images, known in ((1, (0,)), (3, ())):
        learned, before, told = turn(text, data(num_images, known=known), batch_size=1)
        assert all(view.isfinite().all() for view in after(learned).values())
        assert np.isfinite(told.loss)
        if not known and "pseudo" not in text:
            assert torch.equal(after(learned)["anchors"], before["anchors"])
    one = data(4, known=(0,))
    one = Shard(0, NAMES[:1], one.images, one.rows, one.labels[:, :1], one.holdout_rows, one.labels[:0, :1])
    learned, _, told = turn(text, one, names=NAMES[:1])
    assert np.isfinite(told.loss)
    assert after(learned)["anchors"].shape[0] == 1


def test_fixed_anchors_must_be_constants_that_differ(tmp_path):
    with pytest.raises(InputError, match="frozen with anchors='fixed'"):
        turn("fedalign(anchors='fixed', text='learned()')", data())
    np.save(tmp_path / "same.npy", np.ones((3, 4)))
    with pytest.raises(InputError, match="equal ones for zero = one = two"):
        turn(f"fedalign(anchors='fixed', width=4, text=\"file(path='{tmp_path}/same.npy')\")", data())


def test_names_that_were_no_labels_are_asked_through_fixed_anchors(tmp_path):
    from fedmlic.text import save_vectors

    path = tmp_path / "words.safetensors"
    vectors = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    save_vectors(str(path), [*NAMES, "new"], vectors)
    text = f"file(path='{path}')"
    learned, _, _ = turn(f"fedalign(anchors='fixed', width=6, text=\"{text}\")", data())
    network, images = learned.resident.network.eval(), to_float(data().images.pixels)

    found = learned.method.ask(network, learned.task, ["new", "one"])(images)

    torch.testing.assert_close(found[:, 1], learned.method.predict(network, images)[:, 1])
    expected = torch.sigmoid(network.beside(images, torch.from_numpy(vectors[3:])))
    torch.testing.assert_close(found[:, :1], expected, rtol=1e-4, atol=1e-5)
    assert build("method", "fedalign()").ask is None


def test_turns_in_parts_refuse_rules_and_mods_that_change_steps(tiny):
    for changes in ({"strategy": "fedprox()"}, {"mods": "fedrep()"}):
        with pytest.raises(InputError, match="anchors='alternating'"):
            check_experiment(*tiny(method="fedalign()", **changes))
        check_experiment(*tiny(method="fedalign(anchors='together')", **changes))
    check_experiment(*tiny(method="fedalign()", strategy="surgical()", mods="int8()"))


def test_anchors_are_merged_over_annotators_alone():
    """Client 0 annotates label 0, client 1 labels 0 and 1: a mean, client 1's own, and an anchor that stays."""
    strategy, ends, updates = build("strategy", "surgical()"), [], []
    for known, num_images in (((0,), 10), ((0, 1), 4)):
        shard = data(num_images, known=known)
        learned, before, _ = turn("fedalign()", shard)
        layout, flat = learned.resident.layout, learned.resident.flat.clone()
        ends.append(layout.view(flat, "anchors"))
        update = Update.zero(layout, units_for(strategy.weighting, [num_images], len(NAMES)))
        counts = torch.from_numpy(shard.annotations)
        update.add_client(
            num_images, flat, weighting=strategy.weighting, num_images=num_images, annotations=counts, metrics={}
        )
        updates.append(update)
    start = torch.zeros(layout.size)
    for name, view in layout.views(start):
        view.copy_(before[name])

    merged = strategy.aggregate(State(start), iter(updates), Round(1, 2, 2, layout)).flat
    found = layout.view(merged, "anchors")

    torch.testing.assert_close(found[0], (ends[0][0] + ends[1][0]) / 2)
    torch.testing.assert_close(found[1], ends[1][1])
    assert torch.equal(found[2], before["anchors"][2])


def test_clients_trained_at_once_give_the_same_model(play, tmp_path):
    from fedmlic.record import open_run

    text = "fedalign(anchors='together', pseudo=True, absent_percentile=50.0, present_percentile=50.0)"
    found = []
    for size in (1, 3):
        play(tmp_path / str(size), method=text, num_rounds=2, vectorize=size)
        tensors, _ = open_run(tmp_path / str(size)).load_checkpoint(2)
        found.append({name: each for name, each in tensors.items() if each.is_floating_point()})

    assert found[0].keys() == found[1].keys() != set()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)

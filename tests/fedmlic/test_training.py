"""Local training: batches, augmentation, optimisers and clipping against torch and by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.method import Local
from fedmlic.mod import Hooks, Stage
from fedmlic.optimiser import clip_norm
from fedmlic.pixel_scale import to_float
from fedmlic.shard import Shard
from fedmlic.training import batches, classifier, fit, steps
from fedmlic.views import augment

CPU = torch.device("cpu")


def experiment(**changes):
    small = {"num_clients": 4, "cohort_size": 2, "batch_size": 4, "local_epochs": 1, "learning_rate": 3e-3}
    return Experiment(**{**small, **changes})


def shard(num_images=10, num_labels=3, *, client=0, labels=None):
    """Images whose every pixel is their row number."""
    pixels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 8, 8, 3))
    images = SimpleNamespace(take=lambda rows: np.ascontiguousarray(pixels[rows]))
    rng = np.random.default_rng(client)
    if labels is None:
        labels = rng.integers(-1, 2, (num_images, num_labels)).astype(np.int8)
    rows = np.arange(num_images)
    none = np.empty(0, dtype=np.int64)
    return Shard(client, ("a", "b", "c")[:num_labels], images, rows, labels, none, labels[:0])


def local(number=1, client=0, **changes):
    return Local(experiment(**changes), number, client, CPU, incoming=lambda: None)


def rows_of(batch):
    """Which images a batch without augmentation holds."""
    return (batch[0][:, 0, 0, 0] * 63.75 + 127.5).round().long().tolist()


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def resident(seed=0):
    torch.manual_seed(seed)
    return Resident(Linear(), num_labels=3, label_rows=("head.weight", "head.bias"))


def squares(network, images, labels):
    return ((network(images) - labels.float()) ** 2).mean()


# Batches


class Normed(nn.Module):
    """BatchNorm over a map of one place: it needs two images."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.head(self.norm(images.mean((2, 3), keepdim=True)).flatten(1))


def normed():
    torch.manual_seed(0)
    moments = [("norm.running_mean", "norm.running_var")]
    return Resident(Normed(), num_labels=3, label_rows=("head.weight", "head.bias"), moments=moments)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (9, 8, [9]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 2, [3]), (2, 4, [2])],
)
def test_under_batch_norm_a_last_batch_of_one_image_joins_the_one_before(num_images, batch_size, sizes):
    learner = normed()

    trained = fit(learner, shard(num_images), local(batch_size=batch_size, local_epochs=2), squares)

    assert learner.network.sizes == 2 * sizes
    assert trained.num_steps == 2 * len(sizes)


def test_joined_batches_hold_every_image_once_in_the_order_of_the_others():
    joined = list(steps(9, local(), join_last=True))

    assert np.array_equal(np.concatenate(joined), np.concatenate(list(steps(9, local()))))


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 4), (3, 1)])
def test_batch_norm_over_one_value_names_the_client_and_what_to_change(num_images, batch_size):
    given_local = local(client=7, batch_size=batch_size)

    with pytest.raises(InputError, match=rf"client 7 .* got 1 of its {num_images} images.*batch-size.*norm="):
        fit(normed(), shard(num_images, labels=np.ones((num_images, 3), np.int8)), given_local, squares)


def test_other_errors_of_a_loss_stay_as_they_are():
    def wrong(*_):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        fit(resident(), shard(), local(), wrong)


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (4, 4), (1, 32), (9, 1), (33, 32)])
def test_every_image_comes_once_per_epoch_with_its_own_labels(num_images, batch_size):
    given_shard = shard(num_images)

    found = list(batches(given_shard, local(batch_size=batch_size, local_epochs=2)))

    per_epoch = math.ceil(num_images / batch_size)
    assert len(found) == 2 * per_epoch
    for epoch in (found[:per_epoch], found[per_epoch:]):
        rows = [row for batch in epoch for row in rows_of(batch)]
        assert sorted(rows) == list(range(num_images))
        labels = torch.cat([labels for _, labels in epoch])
        assert torch.equal(labels, torch.from_numpy(given_shard.labels)[rows])


def test_the_order_belongs_to_client_round_and_epoch():
    def order(number, client, **changes):
        given_shard = shard(20, client=client)
        return [tuple(rows_of(batch)) for batch in batches(given_shard, local(number, client, **changes))]

    assert order(1, 0) == order(1, 0)
    orders = {tuple(order(number, client, seed=seed)) for number in (1, 2) for client in (0, 1) for seed in (0, 1)}
    assert len(orders) == 8
    twice = order(1, 0, local_epochs=2)
    assert twice[:5] == order(1, 0)
    assert twice[5:] != twice[:5]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_local_steps_count_steps_whatever_the_size(steps):
    found = list(batches(shard(10), local(local_steps=steps)))

    assert len(found) == steps
    whole = list(batches(shard(10), local(local_epochs=math.ceil(steps / 3))))[:steps]
    assert [rows_of(batch) for batch in found] == [rows_of(batch) for batch in whole]


def test_bytes_become_floats_of_mean_zero_and_in_range():
    images = np.array([0, 127, 128, 255], dtype=np.uint8).reshape(1, 2, 2, 1)

    found = to_float(images)

    assert found.shape == (1, 1, 2, 2)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([-2, -0.5 / 63.75, 0.5 / 63.75, 2])
    assert images.flatten().tolist() == [0, 127, 128, 255]


# Augmentation

KINDS = ("none", "flip", "shift", "flip+shift", "crop+flip+colours+cutout+randaugment")


def pictures(count=6, height=16, width=24, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_keeps_the_shape_and_replays(kind):
    images = pictures()
    untouched = images.clone()

    found = augment(images, kind, generator())

    assert found.shape == images.shape
    assert torch.equal(found, augment(images, kind, generator()))
    assert torch.equal(images, untouched)
    assert torch.equal(found, images) == (kind == "none")


def test_a_flipped_image_is_mirrored_and_about_half_are():
    images = pictures(400)

    found = augment(images, "flip", generator())

    mirrored = [torch.equal(f, i.flip(2)) for f, i in zip(found, images, strict=True)]
    same = [torch.equal(f, i) for f, i in zip(found, images, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250


def test_a_shifted_image_is_one_of_the_possible_moves_with_edges_repeated():
    images = pictures(200)
    found = augment(images, "shift", generator())

    seen = set()
    for image, moved in zip(images.numpy(), found.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="edge")
        moves = [(y, x) for y in range(5) for x in range(7) if np.array_equal(padded[:, y : y + 16, x : x + 24], moved)]
        assert len(moves) == 1
        seen.add(moves[0])

    assert {y for y, _ in seen} == set(range(5))
    assert {x for _, x in seen} == set(range(7))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (8, 3)])
def test_images_too_small_to_move_stay(height, width):
    images = pictures(3, height, width)
    found = augment(images, "shift", generator())

    assert found.shape == images.shape
    if height < 8:
        assert torch.equal(found, images)


def test_augmentation_belongs_to_client_and_round():
    def first(number, client):
        noise = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
        given_shard = shard(10, client=client)
        given_shard.images.take = lambda rows: noise[rows]
        found = list(batches(given_shard, local(number, client, augmentation="flip+shift", batch_size=16)))
        return found[0][0].sort(dim=0).values

    assert torch.equal(first(1, 0), first(1, 0))
    assert not torch.equal(first(1, 0), first(2, 0))


# Optimisers


def test_clipping_one_vector_is_clipping_many():
    held, plain = resident(), Linear()
    plain.load_state_dict(held.network.state_dict())
    images, labels = torch.randn(5, 3, 8, 8, generator=generator()), torch.ones(5, 3)
    for network in (held.network, plain):
        (squares(network, images, labels) * 1000).backward()

    clip_norm(held.parameters, 0.5)
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)

    for mine, theirs in zip(held.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


# fit


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "sgd", "momentum": 0.5}, {"clip_norm": 0.0}, {"clip_norm": 0.01}]
)
def test_fit_is_a_plain_training_loop(changes):
    held, plain = resident(), Linear()
    plain.load_state_dict(held.network.state_dict())
    given_shard, turn = shard(10), local(local_epochs=3, **changes)
    options = turn.experiment
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[options.optimizer]
    more = {"momentum": 0.5} if options.optimizer == "sgd" else {}
    optimiser = kind(plain.parameters(), lr=options.learning_rate, **more)
    losses = []
    for images, labels in batches(given_shard, turn):
        optimiser.zero_grad()
        loss = squares(plain, images, labels)
        loss.backward()
        if options.clip_norm:
            nn.utils.clip_grad_norm_(plain.parameters(), options.clip_norm)
        optimiser.step()
        losses.append(loss.item())

    trained = fit(held, given_shard, turn, squares)

    for mine, theirs in zip(held.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert trained.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert trained.num_steps == 9


def test_dropout_belongs_to_client_and_round_and_leaves_the_global_generator_alone():
    def loss(network, images, labels):
        return (nn.functional.dropout(network(images), 0.5, training=network.training) - labels).square().mean()

    def trained(number, noise):
        torch.manual_seed(noise)
        held = resident()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fit(held, shard(10), local(number), loss)
        assert torch.equal(before, torch.get_rng_state())
        return held.flat.clone()

    assert torch.equal(trained(1, 0), trained(1, 5))
    assert not torch.equal(trained(1, 0), trained(2, 0))


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do():
    with pytest.raises(FloatingPointError, match=r"got nan after 3 steps\. Lower learning-rate"):
        fit(resident(), shard(10), local(), lambda network, images, _: network(images).mean() * math.nan)


def test_a_client_that_knows_nothing_trains_without_effect_or_harm():
    method = classifier(lambda logits, labels: (logits * (labels >= 0)).square().sum())
    held = resident()
    before = held.flat.clone()
    labels = np.full((10, 3), -1, dtype=np.int8)

    trained = method.train(held, shard(10, labels=labels), local())

    assert trained.loss == 0
    assert trained.num_steps == 3
    assert torch.equal(held.flat, before)


def test_the_network_trains_in_training_mode():
    modes = []

    def loss(network, images, labels):
        modes.append(network.training)
        return squares(network, images, labels)

    held = resident()
    held.network.eval()
    fit(held, shard(4), local(), loss)

    assert modes == [True]


# --- hooks of mods ------------------------------------------------------------------------


class Spied(nn.Module):
    """A backbone with a feature map, a head, and a BatchNorm between."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.norm(self.backbone(images)).mean((2, 3)))


def spied():
    torch.manual_seed(3)
    return Resident(
        Spied(),
        num_labels=3,
        label_rows=("head.weight", "head.bias"),
        moments=[("norm.running_mean", "norm.running_var")],
    )


def distance(network, images, labels):
    return (network(images) - labels).square().mean()


def with_hooks(*hooks, **changes):
    return replace(local(**changes), hooks=hooks)


def fitted(*hooks, **changes):
    held = spied()
    trained = fit(held, shard(), with_hooks(*hooks, **changes), distance)
    return held, trained


def test_hooks_that_add_nothing_change_no_bit():
    plain, expected = fitted()
    with_empty, trained = fitted(Hooks(), Hooks(gradient=lambda: None))
    everything, staged = fitted(Hooks(stages=[Stage(1, frozenset(plain.trainable.names))]))

    assert torch.equal(plain.flat, with_empty.flat)
    assert torch.equal(plain.flat, everything.flat)
    assert expected == trained == staged


def test_a_term_and_a_gradient_are_those_of_a_plain_loop():
    """sgd by hand: the loss with its terms, then the changed gradient, in the order of the mods."""
    changes = {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.0}
    held, alone = resident(), resident()

    def double():
        for parameter in held.parameters:
            parameter.grad.mul_(2)

    def shift():
        for parameter in held.parameters:
            parameter.grad.add_(0.01)

    def term(step):
        assert step.network is held.network
        return 0.3 * step.network.head.weight.square().sum()

    where = with_hooks(Hooks(term=term, gradient=double), Hooks(gradient=shift), **changes)
    trained = fit(held, shard(), where, distance)

    losses = []
    alone.network.train()
    for images, labels in batches(shard(), where):
        alone.zero_grad()
        loss = distance(alone.network, images, labels) + 0.3 * alone.network.head.weight.square().sum()
        loss.backward()
        with torch.no_grad():
            for parameter in alone.parameters:
                parameter.sub_(0.1 * (2 * parameter.grad + 0.01))
        losses.append(loss.item())
    torch.testing.assert_close(held.flat, alone.flat, rtol=1e-6, atol=1e-7)
    assert trained.loss == pytest.approx(sum(losses) / len(losses))


def test_gradients_are_changed_before_their_norm_is_limited():
    held = spied()

    def blow_up():
        for parameter in held.parameters:
            parameter.grad.mul_(1e6)

    before = held.flat.clone()
    where = with_hooks(Hooks(gradient=blow_up), optimizer="sgd", learning_rate=0.1, clip_norm=1.0, local_steps=1)
    part = held.layout.only([name for name in held.layout.names if "running" not in name])
    fit(held, shard(), where, distance)

    moved = held.layout.gather(held.flat, part) - held.layout.gather(before, part)
    assert float(moved.norm()) == pytest.approx(0.1, rel=1e-4)


def test_features_are_those_of_the_methods_own_pass_and_carry_gradient():
    held = spied()
    passes, seen = [], []
    held.network.backbone.register_forward_hook(lambda *_: passes.append(1))

    def term(step):
        seen.append(step)
        expected = nn.functional.conv2d(step.images, held.network.backbone.weight, held.network.backbone.bias)
        torch.testing.assert_close(step.features, expected.mean((2, 3)))
        assert step.features.requires_grad
        assert step.labels.dtype == torch.int8
        return 0.0 * step.features.sum()

    trained = fit(held, shard(), with_hooks(Hooks(term=term)), distance)

    assert len(passes) == len(seen) == trained.num_steps == 3
    assert len(held.network.backbone._forward_hooks) == 1, "only the one of this test is left"


def test_stages_train_their_tensors_one_after_another():
    held = spied()
    start = held.layout.unpack(held.flat)
    head = frozenset({"head.weight", "head.bias"})
    body = frozenset(held.trainable.names) - head
    after, lengths = [], []

    def note():
        after.append({p for p in ("head.weight", "backbone.weight") if named(held, p).grad is not None})
        lengths.append(held.network.norm.training)

    fit(held, shard(), with_hooks(Hooks(stages=[Stage(2, head), Stage(1, body)], gradient=note)), distance)

    assert after == [{"head.weight"}] * 6 + [{"backbone.weight"}] * 3
    assert lengths == [False] * 6 + [True] * 3
    assert held.trained is None
    assert all(parameter.requires_grad for parameter in held.network.parameters())
    moved = {name for name, tensor in held.layout.unpack(held.flat).items() if not torch.equal(tensor, start[name])}
    assert moved >= {"head.weight", "backbone.weight", "norm.running_mean"}


def named(held, name):
    return dict(held.network.named_parameters())[name]


def test_a_stage_trains_no_more_than_the_stretch_allows():
    held = spied()
    before = held.layout.unpack(held.flat)
    held.train_only(["head.weight", "head.bias"])
    stages = [Stage(1, frozenset({"backbone.weight"})), Stage(1, frozenset({"backbone.bias", "head.bias"}))]

    trained = fit(held, shard(), with_hooks(Hooks(stages=stages)), distance)

    moved = {name for name, tensor in held.layout.unpack(held.flat).items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.bias"}
    assert trained.num_steps == 3, "a stage in which nothing may train takes no step"
    assert held.trained == {"head.weight", "head.bias"}


def test_a_term_that_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match="finite training loss"):
        fitted(Hooks(term=lambda step: step.features.sum() * math.nan))

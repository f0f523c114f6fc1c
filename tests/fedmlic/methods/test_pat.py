"""PAT against a plain loop, and the identities that its formulas imply."""

import copy

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.patches import cut
from fedmlic.shard import Shard

NAMES = ("a", "b", "c")


def learner(method="pat()", shape=(12, 10, 3), names=NAMES, model="small_cnn(width=4, num_blocks=0)"):
    return build_learner(Experiment(method=method, model=model), names, shape)


def images(count=4, shape=(12, 10, 3), seed=0):
    height, width, channels = shape
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def observed(count=4, num_labels=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, (count, num_labels)).astype(np.int8))


def by_hand(network, image, temperature=1.0):
    """g and d of one image, in loops over patches and labels; numbers as Python's."""
    half_height, half_width = image.shape[1] // 2, image.shape[2] // 2
    features = []
    for row in range(2):
        for column in range(2):
            part = image[:, row * half_height :, column * half_width :][:, :half_height, :half_width]
            larger = torch.nn.functional.interpolate(part[None], size=image.shape[1:], mode="bilinear")
            features.append(network.backbone(larger)[0].mean((1, 2)))
    whole = network.backbone(image[None])[0].mean((1, 2))
    g, d = [], []
    for label in range(len(NAMES)):
        score = {
            name: [float(weight[label] @ each) for each in features]
            for name, weight in (("a", network.attention.weight), ("e", network.evidence.weight))
        }
        weights = [np.exp(each / temperature) for each in score["a"]]
        g.append(float(network.head.weight[label] @ whole + network.head.bias[label]))
        d.append(
            sum(w * (e + float(network.evidence.bias[label])) for w, e in zip(weights, score["e"], strict=True))
            / sum(weights)
        )
    return g, d


def asymmetric_by_hand(logit, state):
    """ASL with exponents 4 and 0 and margin 0.05."""
    p = 1 / (1 + np.exp(-logit))
    if state == 1:
        return -np.log(p)
    q = max(p - 0.05, 0)
    return -(q**4) * np.log(1 - q) if state == 0 else 0.0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@torch.no_grad()
def test_scores_loss_and_prediction_by_hand(reduction):
    learned = learner(f"pat(temperature=0.5, reduction='{reduction}')")
    network, batch, labels = learned.resident.network, images(), observed()
    for head in (network.head, network.evidence, network.attention):
        head.weight.mul_(5)  # so that patches differ
    scores = [by_hand(network, image, 0.5) for image in batch]

    found = network(batch)
    loss = learned.method.objective.loss(network, batch, labels)
    probs = learned.method.predict(network.eval(), batch)

    expected = torch.tensor(scores, dtype=torch.float32).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    entries = [
        asymmetric_by_hand(score[part][label], int(labels[image, label]))
        for image, score in enumerate(scores)
        for part in (0, 1)
        for label in range(len(NAMES))
    ]
    divisor = 1 if reduction == "sum" else int((labels >= 0).sum())
    assert float(loss) == pytest.approx(sum(entries) / divisor, rel=1e-4)
    torch.testing.assert_close(probs, torch.sigmoid(expected.mean(0)), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_head_and_only_annotated_labels():
    learned = learner()
    labels = observed()
    labels[:, 1] = -1

    learned.method.objective.loss(learned.resident.network, images(), labels).backward()

    for name, parameter in learned.resident.network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        if not name.startswith("backbone"):
            assert (parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad.abs())[1] == 0


@torch.no_grad()
def test_the_order_of_patches_does_not_matter_and_equal_attention_gives_the_mean():
    network = learner().resident.network
    batch = images()
    patches = cut(batch, 2)

    torch.testing.assert_close(network(batch, patches[[2, 0, 3, 1]]), network(batch, patches))
    torch.testing.assert_close(network(batch), network(batch, patches))
    network.attention.weight.zero_()
    evidence = torch.stack([network.evidence(network.read(patch)) for patch in patches])
    torch.testing.assert_close(network(batch)[1], evidence.mean(0))


@torch.no_grad()
def test_one_patch_gives_two_heads_on_the_image():
    network = learner("pat(grid=1)").resident.network
    batch = images()

    features = network.read(batch)

    torch.testing.assert_close(network(batch), torch.stack([network.head(features), network.evidence(features)]))


@torch.no_grad()
def test_self_mode_is_one_head_that_is_its_own_attention():
    own, cross = (learner(f"pat(mode='{mode}')").resident.network for mode in ("self", "cross"))
    tensors = dict(own.named_parameters())
    assert not any(name.startswith("attention") for name in tensors)
    for name, parameter in cross.named_parameters():
        parameter.copy_(tensors[name.replace("attention", "evidence")])

    torch.testing.assert_close(own(images()), cross(images()))


@torch.no_grad()
@pytest.mark.parametrize("method", ["pat()", "pat(patch_upsample=False)"])
def test_training_and_evaluation_compute_the_same_without_batch_norm(method):
    network = learner(method).resident.network
    expected = network(images())

    torch.testing.assert_close(network.eval()(images()), expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_sees_whole_images_and_patches_in_one_batch():
    network = learner(model="small_cnn(width=4, num_blocks=0, norm='pooled')").resident.network
    batch, once = images(), copy.deepcopy(network)
    seen = []
    network.backbone.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))

    network(batch)
    once.backbone(torch.cat([batch, cut(batch, 2).flatten(0, 1)]))

    assert [len(each) for each in seen] == [5 * len(batch)]
    for name, buffer in network.backbone.named_buffers():
        assert torch.equal(buffer, dict(once.backbone.named_buffers())[name])


@pytest.mark.parametrize("size", [(12, 10, 3), (13, 11, 1), (5, 4, 3), (12, 2, 3)])
@pytest.mark.parametrize("num_labels", [1, 1628])
@pytest.mark.parametrize("method", ["pat()", "pat(grid=3)"])
def test_odd_sizes_one_image_one_label_and_many(size, num_labels, method):
    if size[1] < 3 and "3" in method:
        with pytest.raises(InputError, match="grid to be at most the shorter side of images, 2 pixels, got 3"):
            learner(method, size)
        return
    learned = learner(method, size, tuple(map(str, range(num_labels))))

    learned.method.objective.loss(learned.resident.network, images(1, size), observed(1, num_labels)).backward()

    assert all(parameter.grad.isfinite().all() for parameter in learned.resident.network.parameters())
    assert learned.method.predict(learned.resident.network.eval(), images(1, size)).shape == (1, num_labels)


def test_each_view_is_changed_by_itself_and_replays():
    learned = learner("pat(views=['flip', 'cutout'])")
    settings = Experiment()
    batch = images(1).expand(4, -1, -1, -1)

    def views(number):
        local = Local(settings, number, 0, torch.device("cpu"), lambda: None)
        return learned.method.objective.inputs(local).of(batch, observed(), torch.arange(4))

    whole, parts = views(1)

    assert whole.shape == batch.shape
    assert parts.shape == (4, *batch.shape)
    assert len({tuple(each.flatten().tolist()) for each in (*whole, *parts[0])}) == 8
    assert all(torch.equal(left, right) for left, right in zip((whole, parts), views(1), strict=True))
    assert not torch.equal(whole, views(2)[0])


def test_views_that_the_images_do_not_allow_are_refused_before_any_turn():
    for views in ("['randaugment']", "['cutout', 'randaugment']"):
        with pytest.raises(InputError, match="1 or 3 channels for 'randaugment', got 13"):
            learner(f"pat(views={views})", shape=(12, 10, 13))

    assert learner("pat(views=['flip', 'shift', 'colours', 'cutout'])", shape=(12, 10, 13))
    assert learner("pat(views=['randaugment'])", shape=(12, 10, 1))


def test_a_private_attention_head_is_not_exchanged():
    learned = learner("pat(attention='private')")

    assert learned.resident.private_names == ("attention.weight",)
    assert not any(name.startswith("attention") for name in learned.resident.layout.names)
    with pytest.raises(InputError, match="Expected mode='cross' with attention='private'"):
        spec.build("method", "pat(mode='self', attention='private')")


def test_a_turn_trains_every_option_and_gives_a_mod_the_features_of_the_batch():
    """Features of patches would not belong to the images that a term of the loss looks at."""
    from fedmlic.mod import Hooks

    class Pixels:
        def take(self, rows):
            return np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)[rows]

    for method in ("pat(views=['randaugment'])", "pat(patch_upsample=False)", "pat(mode='self', grid=3)"):
        learned = learner(method, (12, 12, 3))
        seen = []

        def term(step, seen=seen):
            seen.append(len(step.features) == len(step.images))
            with torch.no_grad():
                expected = step.network.read(step.images)
            same = torch.allclose(step.features, expected, rtol=1e-4, atol=1e-5)
            seen.append(same)
            return step.features.sum() * 0

        settings = Experiment(method=method, batch_size=4, local_epochs=1)
        local = Local(settings, 1, 0, torch.device("cpu"), lambda: None, hooks=(Hooks(term=term),))
        shard = Shard(0, NAMES, Pixels(), np.arange(9), observed(9).numpy(), np.zeros(0, np.int64), observed(0).numpy())
        start = learned.resident.flat.clone()
        trained = learned.method.train(learned.resident, shard, local)

        assert trained.num_steps == 3
        assert seen[::2] == [True] * 3
        assert seen[1::2] == [True] * 3 or "views" in method
        assert not torch.equal(learned.resident.flat, start)

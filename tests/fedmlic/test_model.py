"""Pools and BatchNorm policies, each against torch's own or a plain loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional as F

from fedmlic.errors import InputError
from fedmlic.model import (
    Backbone,
    Classifier,
    FrozenBatchNorm2d,
    apply_bn_policy,
    group_norm,
)


class Identity(Backbone):
    """The images are the features."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features
        self.bn_policy = "none"

    def forward(self, images):
        return images


def maps(batch=4, features=3, height=5, width=6):
    return torch.randn(batch, features, height, width, generator=torch.Generator().manual_seed(0))


def plain_logits(network, features, pool, temperature):
    """One place, one label, one image at a time, in Python's float64."""
    weight, bias = network.head.weight.tolist(), network.head.bias.tolist()
    result = []
    for image in features.flatten(2).transpose(1, 2).tolist():
        row = []
        for label_weight, label_bias in zip(weight, bias, strict=True):
            z = [sum(w * x for w, x in zip(label_weight, place, strict=True)) + label_bias for place in image]
            row.append(
                {
                    "mean": sum(z) / len(z),
                    "max": max(z),
                    "logsumexp": temperature * math.log(sum(math.exp(v / temperature) for v in z) / len(z)),
                }[pool]
            )
        result.append(row)
    return torch.tensor(result)


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_classifier_equals_the_plain_loop(pool, temperature):
    network = Classifier(Identity(3), 2, pool, temperature)
    features = maps()

    torch.testing.assert_close(network(features), plain_logits(network, features, pool, temperature))


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_hidden_layers_are_1x1_convolutions_with_relu(pool):
    network = Classifier(Identity(3), 2, pool=pool, hidden=(7, 5))
    features = maps()
    layers = [layer for layer in network.hidden if isinstance(layer, nn.Linear)]
    convolved = features
    for layer in layers:
        convolved = F.relu(F.conv2d(convolved, layer.weight[:, :, None, None], layer.bias))
    plain = Classifier(Identity(5), 2, pool=pool)
    plain.head.load_state_dict(network.head.state_dict())

    assert [layer.weight.shape for layer in layers] == [(7, 3), (5, 7)]
    assert torch.allclose(network(features), plain(convolved), atol=1e-6)
    assert [name for name, _ in plain.named_parameters()] == ["head.weight", "head.bias"]


def test_the_head_is_a_1x1_convolution():
    network = Classifier(Identity(3), 2, "max")
    features = maps()

    logits = F.conv2d(features, network.head.weight[:, :, None, None], network.head.bias)

    torch.testing.assert_close(network(features), logits.amax(dim=(2, 3)))


@given(
    logits=hnp.arrays("float32", (2, 1, 3, 2), elements=st.floats(-50, 50, width=32)),
    temperature=st.floats(0.05, 20),
)
def test_logsumexp_lies_between_mean_and_maximum_and_keeps_constants(logits, temperature):
    network = Classifier(Identity(1), 1, "logsumexp", temperature)
    nn.init.ones_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    features = torch.from_numpy(logits)

    with torch.no_grad():
        pooled = network(features)[:, 0]
        constant = network(features[:, :, :1, :1].expand(2, 1, 4, 4))[:, 0]

    assert (pooled >= features.mean(dim=(1, 2, 3)) - 1e-3).all()
    assert (pooled <= features.amax(dim=(1, 2, 3)) + 1e-3).all()
    torch.testing.assert_close(constant, features[:, 0, 0, 0], atol=1e-3, rtol=1e-4)


def test_the_first_axis_of_label_rows_is_the_labels():
    network = Classifier(Identity(3), 7)
    tensors = dict(network.named_parameters())

    assert [len(tensors[name]) for name in Classifier.label_rows] == [7, 7]
    features = maps()
    before = network(features)
    with torch.no_grad():
        for name in Classifier.label_rows:
            tensors[name][2] += 1
    changed = (network(features) != before).any(dim=0)
    assert changed.tolist() == [i == 2 for i in range(7)]


@pytest.mark.parametrize(
    ("argument", "match"), [({"pool": "avg"}, "mean, max, logsumexp"), ({"temperature": 0.0}, "above 0")]
)
def test_classifier_rejects(argument, match):
    with pytest.raises(InputError, match=match):
        Classifier(Identity(3), 2, **argument)


def test_logits_are_float32_under_autocast():
    for pool in ("mean", "max", "logsumexp"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert Classifier(Identity(3), 2, pool)(maps()).dtype == torch.float32


@pytest.mark.parametrize(
    ("channels", "limit", "groups"), [(64, 32, 32), (48, 32, 24), (7, 32, 7), (7, 4, 1), (12, 8, 6)]
)
def test_group_norm_takes_the_largest_divisor(channels, limit, groups):
    assert group_norm(channels, limit).num_groups == groups


def used_batch_norm():
    """A BatchNorm in a network, with statistics, weight and bias that are not the initial ones."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Sequential(nn.BatchNorm2d(4, eps=1e-2), nn.ReLU()))
    with torch.no_grad():
        network[1][0].weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
        network[1][0].bias.copy_(torch.tensor([0.1, 0.0, -1.0, 1.0]))
    network(maps() * 3 + 1)
    return network


def test_frozen_equals_batch_norm_in_evaluation_and_never_thaws():
    network = used_batch_norm()
    reference = network.eval()(maps())
    names = set(network.state_dict()) - {"1.0.num_batches_tracked"}

    apply_bn_policy(network, "frozen")
    network.train()
    outputs = [network(maps()) for _ in range(2)]

    assert isinstance(network[1][0], FrozenBatchNorm2d)
    assert set(network.state_dict()) == names
    for output in outputs:
        torch.testing.assert_close(output, reference)
    outputs[0].square().sum().backward()
    assert network[1][0].weight.grad.abs().sum() > 0
    assert network[1][0].bias.grad.abs().sum() > 0


def test_frozen_equals_torchvision_where_that_is_frozen_too():
    from torchvision.ops import FrozenBatchNorm2d as Reference

    ours, theirs = FrozenBatchNorm2d(3, eps=1e-3), Reference(3, eps=1e-3)
    values = {
        name: torch.rand(3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(ours.state_dict())
    }
    ours.load_state_dict(values)
    theirs.load_state_dict(values)

    torch.testing.assert_close(ours(maps()), theirs(maps()))


def test_group_norm_takes_weight_and_bias_over():
    network = used_batch_norm()
    weight, bias = network[1][0].weight.clone(), network[1][0].bias.clone()

    apply_bn_policy(network, "none", num_groups=2)

    expected = F.group_norm(network[0](maps()), 2, weight, bias, eps=1e-5).relu()
    torch.testing.assert_close(network(maps()), expected)
    assert set(network.state_dict()) == {"0.weight", "1.0.weight", "1.0.bias"}


def test_pooled_leaves_batch_norm():
    network = used_batch_norm()
    batch_norm = network[1][0]

    apply_bn_policy(network, "pooled")

    assert network[1][0] is batch_norm


def timm_network(name, seed=0):
    """A network of timm whose BatchNorm has statistics, weight and bias that are not the initial ones."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(seed)
    network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
                for tensor in (module.bias, module.running_mean):
                    tensor.copy_(0.2 * torch.randn(tensor.shape, generator=rng))
    return network


TIMM = ["mobilenetv3_small_050", "regnetx_002", "tf_efficientnet_lite0", "resnet10t"]
"""Activations inside the norm (Hardswish, ReLU, ReLU6), an eps of 1e-3, and norms without an activation."""


@pytest.mark.parametrize("name", TIMM)
def test_frozen_computes_what_timms_network_computes_in_evaluation(name):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    network = timm_network(name).eval()
    names = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    with torch.no_grad():
        expected = network(images)

    apply_bn_policy(network, "frozen")

    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert set(network.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected)


def batch_norms_as_group_norms(network, num_groups):
    """An independent answer: timm's layers stay, and only their normalisation is computed otherwise."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            groups = group_norm(module.num_features, num_groups).num_groups

            def forward(maps, module=module, groups=groups):
                maps = F.group_norm(maps, groups, module.weight, module.bias)
                return module.act(module.drop(maps)) if hasattr(module, "act") else maps

            module.forward = forward
    return network


@pytest.mark.parametrize("name", TIMM)
def test_group_norm_keeps_the_activations_of_timms_network(name):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    reference = batch_norms_as_group_norms(timm_network(name).eval(), 8)
    network = timm_network(name).eval()

    apply_bn_policy(network, "none", num_groups=8)

    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images))
    assert not any(key.endswith(("running_mean", "running_var")) for key in network.state_dict())


def test_pooled_leaves_timms_network_with_its_eps_and_momentum():
    network = timm_network("tf_efficientnet_lite0").eval()
    before = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    apply_bn_policy(network, "pooled")

    after = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert {module.eps for module in after} == {1e-3}


class Own(nn.BatchNorm2d):
    """Computes something after the normalisation."""

    def forward(self, maps):
        return super().forward(maps).tanh()


class Named(nn.BatchNorm2d):
    """Another name for the same."""


@pytest.mark.parametrize("policy", ["frozen", "none"])
@pytest.mark.parametrize("layer", [Own(3), nn.LazyBatchNorm2d()])
def test_a_layer_of_unknown_computation_is_refused_by_name_and_nothing_is_changed(policy, layer):
    first = nn.BatchNorm2d(3)
    network = nn.Sequential(first, nn.Sequential(layer))

    with pytest.raises(InputError, match=rf"got \S*{type(layer).__name__} at '1.0'"):
        apply_bn_policy(network, policy)

    assert network[0] is first


def test_statistics_that_are_not_there_cannot_be_frozen():
    with pytest.raises(InputError, match="running statistics that can be frozen"):
        apply_bn_policy(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "frozen")


@pytest.mark.parametrize("policy", ["frozen", "none"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (2, 4, 5)),
        (nn.BatchNorm3d(4), (2, 4, 3, 2, 2)),
        (nn.BatchNorm2d(4, affine=False), (2, 4, 3, 3)),
        (Named(4, eps=0.5), (2, 4, 3, 3)),
    ],
)
def test_batch_norm_of_every_kind_is_replaced_wherever_it_stands(policy, layer, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer(values * 2 + 1)
    if layer.affine:
        nn.init.normal_(layer.weight)
        layer.bias.requires_grad_(requires_grad=False)
    network = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer), "c": layer})
    expected = {"frozen": layer.eval()(values), "none": F.group_norm(values, 2, layer.weight, layer.bias)}[policy]

    apply_bn_policy(network, policy, num_groups=2)

    assert network["a"] is network["b"][0] is network["c"]
    torch.testing.assert_close(network["a"].train()(values), expected)
    assert [p.requires_grad for p in network["a"].parameters()] == ([True, False] if layer.affine else [])

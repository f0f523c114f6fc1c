"""What every backbone in the catalogue must do; new files are found by themselves."""

import importlib
import inspect
import os

import pytest
import torch

from fedmlic import spec
from fedmlic.model import Backbone, Classifier, Model
from fedmlic.seeds import torch_global_stream

NAMES = os.environ.get("FEDMLIC_ENTRY", "").split() or spec.entries("model")


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    for package in getattr(importlib.import_module(f"fedmlic.models.{request.param}"), "IMPORTS", ()):
        pytest.importorskip(package, reason=f"{package}, which model {request.param} is made of, is not installed")
    return spec.build("model", request.param)


def build(model, channels=3, seed=0):
    with torch_global_stream(seed, "init"):
        return model.build(channels)


def pictures(count=3, channels=3, side=64, seed=1):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_catalogue_is_not_empty():
    assert {"small_cnn", "resnet"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_factory_documents_keyword_only_parameters_with_defaults(name):
    factory = spec.factory("model", name)

    assert factory.__doc__.strip()
    for parameter in inspect.signature(factory).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
        assert f"{parameter.name}:" in factory.__doc__


def test_the_default_needs_no_file_and_states_its_policy(model):
    network = build(model)

    assert isinstance(model, Model)
    assert isinstance(network, Backbone)
    assert not model.pretrained
    assert network.bn_policy == model.bn_policy
    has_batch_norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert has_batch_norm == (network.bn_policy == "pooled")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_feature_map_for_grey_and_colour_and_oblong_images(model, channels):
    network = build(model, channels)
    images = pictures(channels=channels)[:, :, :, :32]

    features = network(images)

    assert features.shape[:2] == (3, network.num_features)
    assert features.dtype == torch.float32
    assert features.shape[2] >= features.shape[3] >= 1
    assert torch.isfinite(features).all()


def test_every_parameter_is_used_and_training_leaves_buffers_alone(model):
    network = build(model).train()
    images = pictures()
    untouched = images.clone()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}

    # Squares, because the plain sum of a normalised map may have no gradient at all.
    network(images).square().sum().backward()

    assert torch.equal(images, untouched)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    if network.bn_policy != "pooled":
        for name, buffer in network.named_buffers():
            assert torch.equal(buffer, buffers[name]), name


def test_images_do_not_influence_each_other(model):
    network = build(model).eval()
    images = pictures()

    together = network(images)

    torch.testing.assert_close(together[1:2], network(images[1:2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.flip(0), network(images.flip(0)), rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_weights_and_the_state_dict_carries_them(model):
    first, again, other = build(model), build(model), build(model, seed=1)
    images = pictures()

    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first(images), other(images))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(images), other.eval()(images))


def test_a_classifier_fits_on_top(model):
    network = Classifier(build(model), num_labels=4, pool="logsumexp")

    assert network(pictures()).shape == (3, 4)

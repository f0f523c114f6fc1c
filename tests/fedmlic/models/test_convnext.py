"""ConvNeXt against timm's and torchvision's with the same weights, and its open inside."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedmlic.errors import InputError
from fedmlic.model import StageBackbone, TokenBackbone, require
from fedmlic.models import convnext as module
from fedmlic.models.convnext import convnext
from fedmlic.pretrained import PIXELS

DEPTHS, WIDTHS = (1, 2, 3, 1), (8, 12, 16, 24)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that cost nothing."""
    monkeypatch.setitem(module.SIZES, "atto", (DEPTHS, WIDTHS))


def stored(height, width):
    """uint8 images as the corpus keeps them."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, height, width, 3), generator=rng, dtype=torch.uint8)


def ours(images):
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 63.75


def prepared(images):
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in PIXELS["imagenet"])
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def randomised(network):
    rng = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=rng), alpha=0.2)
    return network.eval()


def reference(**options):
    timm = pytest.importorskip("timm")
    return randomised(timm.models.ConvNeXt(depths=DEPTHS, dims=WIDTHS, **options))


def authors(name):
    """timm's name as the authors' checkpoints have it, written without the code under test."""
    name = re.sub(r"^stem\.", "downsample_layers.0.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
    name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2.", name)
    name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
    return name.replace("head.norm", "norm").replace("head.fc", "head")


@pytest.mark.parametrize("conv_mlp", [False, True])
@pytest.mark.parametrize("names", ["timm", "authors"])
@pytest.mark.parametrize("size", [(64, 64), (75, 41)])
def test_the_map_of_every_stage_is_timms(tmp_path, conv_mlp, names, size):
    network = reference(conv_mlp=conv_mlp)
    state = network.state_dict()
    save_file(state if names == "timm" else {authors(n): t for n, t in state.items()}, tmp_path / "a.safetensors")
    backbone = convnext(weights=str(tmp_path / "a.safetensors")).build(3).eval()

    with torch.no_grad():
        maps = backbone.maps(ours(stored(*size)))
        expected = network.forward_intermediates(prepared(stored(*size)), intermediates_only=True)

    assert [stage.num_features for stage in backbone.stages] == [m.shape[1] for m in maps] == list(WIDTHS)
    for found, wanted in zip(maps, expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())
    assert torch.equal(maps[-1], backbone(ours(stored(*size))))


def test_torchvisions_weights_give_torchvisions_features(tmp_path):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [*WIDTHS, None]
    network = randomised(
        ConvNeXt([CNBlockConfig(widths[n], widths[n + 1], DEPTHS[n]) for n in range(4)], stochastic_depth_prob=0.0)
    )
    torch.save(network.state_dict(), tmp_path / "convnext.pth")
    backbone = convnext(weights=str(tmp_path / "convnext.pth")).build(3).eval()

    with torch.no_grad():
        found, expected = backbone(ours(stored(64, 64))), network.features(prepared(stored(64, 64)))
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_a_method_can_go_block_by_block():
    backbone = require(convnext().build(3).eval(), StageBackbone, "a method")
    images = ours(stored(64, 32))

    with torch.no_grad():
        features, maps = backbone.embed(images), []
        for stage in backbone.stages:
            features = stage.downsample(features)
            for block in stage.blocks:
                features = block(features)
            maps.append(features)
        assert all(torch.equal(a, b) for a, b in zip(maps, backbone.maps(images), strict=True))

    assert [len(stage.blocks) for stage in backbone.stages] == list(DEPTHS)
    assert [m.shape[2:] for m in maps] == [(16, 8), (8, 4), (4, 2), (2, 1)]
    with pytest.raises(InputError, match=r"its tokens and blocks, got ConvNeXt\. Choose vit"):
        require(backbone, TokenBackbone, "a method")


@pytest.mark.parametrize(("trainable", "expected"), [("last(1)", {"stages.3"}), ("head", set()), ("last(5)", None)])
def test_the_last_parts_train(trainable, expected):
    network = convnext(trainable=trainable).build(3)

    names = {".".join(name.split(".")[:2]) for name, p in network.named_parameters() if p.requires_grad}
    assert names == expected or expected is None
    assert all(p.requires_grad for p in network.parameters()) == (expected is None)


def test_what_does_not_fit_is_refused(tmp_path):
    save_file(reference(use_grn=True, ls_init_value=None).state_dict(), tmp_path / "v2.safetensors")
    with pytest.raises(InputError, match=r"gamma.*grn"):
        convnext(weights=str(tmp_path / "v2.safetensors")).build(3)
    with pytest.raises(InputError, match=r"at most 'last\(5\)'"):
        convnext(trainable="last(6)")


def test_images_may_be_resized_inside_and_grey_ones_are_three_channels(tmp_path):
    save_file(reference().state_dict(), tmp_path / "a.safetensors")
    network = convnext(weights=str(tmp_path / "a.safetensors"), image_size=32).build(1).eval()
    grey = ours(stored(50, 70))[:, :1]

    assert network(grey).shape == (2, 24, 1, 1)
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    assert any(isinstance(m, nn.LayerNorm) for m in network.modules())


@pytest.mark.slow
def test_the_sizes_are_timms(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.undo()
    for size in module.SIZES:
        with torch.device("meta"):
            expected = dict(timm.create_model(f"convnext_{size}", num_classes=0).named_parameters())
            found = dict(convnext(size=size).build(3).named_parameters())
        assert set(expected) - set(found) == {"head.norm.weight", "head.norm.bias"}
        assert all(p.numel() == expected[name].numel() for name, p in found.items())

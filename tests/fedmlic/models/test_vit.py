"""The Vision Transformer against timm's and torchvision's with the same weights, and its open inside."""

import pytest
import torch
from safetensors.torch import save_file

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.model import Backbone, StageBackbone, TokenBackbone, require
from fedmlic.models import vit as module
from fedmlic.models.vit import vit
from fedmlic.pretrained import PIXELS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes that cost nothing."""
    monkeypatch.setitem(module.SIZES, "tiny", (24, 3, 3))


def stored(height, width):
    """uint8 images as the corpus keeps them."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, height, width, 3), generator=rng, dtype=torch.uint8)


def ours(images):
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 63.75


def prepared(images, scale):
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in PIXELS[scale])
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


OPTIONS = {
    "plain": {},
    "dinov2": {"init_values": 1e-5},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "positions of patches alone": {"no_embed_class": True},
}


def reference(seed=0, **options):
    """timm's network; every tensor random."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.models.VisionTransformer(
            img_size=64, patch_size=16, embed_dim=24, depth=3, num_heads=3, dynamic_img_size=True, **options
        )
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return network.eval()


def saved(network, folder):
    path = str(folder / "vit.safetensors")
    save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_tokens_and_map_are_timms(tmp_path, options, size):
    network = reference(**OPTIONS[options])
    backbone = vit(weights=saved(network, tmp_path), pixels="half").build(3).eval()

    with torch.no_grad():
        tokens = backbone.tokens(ours(stored(*size)))
        expected = network.forward_features(prepared(stored(*size), "half"))
        features = backbone(ours(stored(*size)))

    assert tokens.grid == (size[0] // 16, size[1] // 16)
    torch.testing.assert_close(tokens.values, expected, rtol=0, atol=1e-5)
    places = expected[:, backbone.num_prefix_tokens :]
    for row, column in ((0, 0), (1, 0), (1, 1)):
        torch.testing.assert_close(
            features[:, :, row, column], places[:, row * tokens.grid[1] + column], atol=1e-5, rtol=0
        )


def test_torchvisions_weights_give_torchvisions_class_token(tmp_path):
    from torchvision.models import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(64, 16, 3, 3, 24, 96).eval()
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        network.heads = torch.nn.Identity()
    torch.save({"model": network.state_dict(), "epoch": 1}, tmp_path / "vit.pth")
    backbone = vit(weights=str(tmp_path / "vit.pth"), pixels="imagenet").build(3).eval()

    with torch.no_grad():
        found = backbone.tokens(ours(stored(64, 64))).values[:, 0]
        torch.testing.assert_close(found, network(prepared(stored(64, 64), "imagenet")), rtol=0, atol=1e-5)


def test_a_method_can_add_tokens_and_go_block_by_block():
    backbone = require(vit().build(3).eval(), TokenBackbone, "a method")
    images = ours(stored(40, 40))
    seen = []

    with torch.no_grad():
        values, grid = backbone.embed(images)
        count = values.shape[1]
        values = torch.cat([values, torch.ones(2, 2, backbone.width)], dim=1)
        for block in backbone.blocks:
            values = block(values)
            seen.append(values.shape)
        values = backbone.finish(values)
        plain = backbone.tokens(images)

    assert grid == plain.grid == (3, 3)
    assert count == 10
    assert seen == [(2, 12, 24)] * 3
    assert plain.values.shape == (2, 10, 24)
    assert not torch.allclose(values[:, :10], plain.values)
    assert torch.equal(backbone.on_grid(plain), backbone(images))


def test_a_backbone_without_that_inside_is_refused_by_name():
    with pytest.raises(InputError, match=r"give hsvlt its stages, got VisionTransformer\. Choose convnext"):
        require(vit().build(3), StageBackbone, "hsvlt")


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [("last(1)", {"blocks.2", "norm"}), ("last(2)", {"blocks.1", "blocks.2", "norm"}), ("head", set())],
)
def test_the_last_parts_train(trainable, expected):
    network = vit(trainable=trainable).build(3)

    names = [name.split(".") for name, p in network.named_parameters() if p.requires_grad]
    assert {".".join(name[: 2 if name[0] == "blocks" else 1]) for name in names} == expected


def test_images_may_be_resized_inside():
    network = vit(image_size=32).build(3).eval()

    assert isinstance(network, Backbone)
    assert network.pos_embed.shape == (1, 5, 24)
    assert network(ours(stored(50, 70))).shape == (2, 24, 2, 2)


def test_what_does_not_fit_is_refused(tmp_path):
    path = saved(reference(), tmp_path)
    with pytest.raises(InputError, match="pixels='imagenet'"):
        vit(weights=path)
    with pytest.raises(InputError, match="of another shape"):
        vit(weights=path, pixels="half", size="small").build(3)
    with pytest.raises(InputError, match="clip_image"):
        vit(weights=saved(reference(pre_norm=True), tmp_path), pixels="half").build(3)
    state = reference().state_dict()
    save_file({**state, "pos_embed": state["pos_embed"][:, :11].clone()}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="got 11 positions"):
        vit(weights=str(tmp_path / "odd.safetensors"), pixels="half").build(3)
    with pytest.raises(InputError, match=r"at most 'last\(4\)'"):
        spec.build("model", "vit(trainable='last(5)')")
    with pytest.raises(InputError, match="1 or 3 channels"):
        vit(weights=path, pixels="half").build(4)


@pytest.mark.slow
def test_the_sizes_are_timms(monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.undo()
    for size in ("tiny", "small", "base", "large"):
        with torch.device("meta"):
            expected = timm.create_model(f"vit_{size}_patch16_224", num_classes=0)
            found = vit(size=size).build(3)
        assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}

"""Networks of timm against timm itself: features, scales, weights, parts."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.model import Backbone, FrozenBatchNorm2d
from fedmlic.models import timm as module
from fedmlic.models.timm import timm as factory

library = pytest.importorskip("timm")

FAMILIES = [
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_efficientnet_ln",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "test_vit_relpos",
]
WITH_BATCH_NORM = ["test_byobnet", "test_coatnet", "test_efficientnet", "test_maxvit", "test_resnet"]


def original(name, **options):
    """timm's whole network with random weights and BatchNorm statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = library.create_model(name, pretrained=False, **options)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.data.uniform_(0.8, 1.5)
    return network.eval()


def saved(network, folder, suffix=".safetensors"):
    path = str(folder / f"weights{suffix}")
    state = network.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return path


def stored(height, width):
    """uint8 images as the corpus keeps them."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, height, width, 3), generator=rng, dtype=torch.uint8)


def ours(images):
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 63.75


def prepared(network, images):
    """timm's own preprocessing of pixels, without resizing."""
    cfg = library.data.resolve_data_config({}, model=network)
    mean, std = (torch.tensor(cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def assert_close_to_scale(features, expected):
    assert features.shape == expected.shape
    assert (features - expected).abs().max() <= 2e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_that_timms_network_makes(name, tmp_path):
    network = original(name)
    backbone = factory(name=name, weights=saved(network, tmp_path)).build(3).eval()
    images = stored(160, 160)

    with torch.no_grad():
        features, whole = backbone(ours(images)), network.forward_features(prepared(network, images))
    if whole.ndim == 3:  # tokens, [batch, class and register tokens first, features]
        places = whole[:, network.num_prefix_tokens :]
        side = int(places.shape[1] ** 0.5)
        whole = places.transpose(1, 2).reshape(2, -1, side, side)

    if getattr(network, "output_fmt", "") == "NHWC":
        whole = whole.permute(0, 3, 1, 2)

    assert features.shape[:2] == (2, backbone.num_features)
    assert_close_to_scale(features, whole)


def test_swin_gives_channels_first_at_sizes_that_no_window_fits(tmp_path):
    network = original("swin_tiny_patch4_window7_224", num_classes=0, dynamic_img_size=True)
    backbone = factory(name="swin_tiny_patch4_window7_224", weights=saved(network, tmp_path)).build(3).eval()

    with torch.no_grad():
        features, expected = backbone(ours(stored(64, 32))), network.forward_features(prepared(network, stored(64, 32)))
        odd = backbone(ours(stored(65, 33)))

    assert_close_to_scale(features, expected.permute(0, 3, 1, 2))
    assert features.shape == (2, 768, 2, 1)
    assert odd.shape[:2] == (2, 768)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_family_takes_any_size_and_uses_every_parameter(name, channels):
    model = factory(name=name)
    backbone = model.build(channels).train()
    images = ours(stored(45, 32))[:, :channels]

    features = backbone(images)
    features.square().sum().backward()

    assert isinstance(backbone, Backbone)
    assert features.shape[:2] == (2, backbone.num_features)
    assert torch.isfinite(features).all()
    assert model.bn_policy == backbone.bn_policy == "none"
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())
    missing = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("out_index", [0, 1, -1])
def test_an_earlier_map_can_be_taken(name, out_index, tmp_path):
    network = original(name)
    backbone = factory(name=name, weights=saved(network, tmp_path), out_index=out_index).build(3)
    whole = sum(p.numel() for p in factory(name=name).build(3).parameters())

    with torch.no_grad():
        expected = network.forward_intermediates(
            prepared(network, stored(64, 64)), indices=[out_index], norm=True, intermediates_only=True
        )[0]
        assert_close_to_scale(backbone.eval()(ours(stored(64, 64))), expected)

    backbone(ours(stored(64, 64))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert backbone.num_features == expected.shape[1]
    if out_index != -1:
        assert sum(p.numel() for p in backbone.parameters()) < whole


@pytest.mark.parametrize("name", ["cait_xxs24_224", "crossvit_tiny_240"])
def test_layers_that_run_for_nothing_stay_and_do_not_train(name):
    """Class tokens of these networks take their own way behind the map, or beside it."""
    backbone = factory(name=name, image_size=0).build(3)

    backbone(ours(stored(32, 32))).square().sum().backward()

    idle = [each for each, parameter in backbone.named_parameters() if parameter.grad is None]
    assert idle
    assert idle == [each for each, parameter in backbone.named_parameters() if not parameter.requires_grad]


def test_images_are_resized_inside():
    backbone = factory(name="test_vit_relpos").build(3).eval()
    larger = factory(name="test_resnet", image_size=96).build(3).eval()
    images = ours(stored(40, 64))

    with torch.no_grad():
        assert backbone(images).shape == (2, 96, 10, 10)
        resized = nn.functional.interpolate(images, (96, 96), mode="bilinear", antialias=True)
        torch.testing.assert_close(larger(images), larger(resized), rtol=1e-4, atol=1e-5)
        assert factory(name="test_maxvit", image_size=64).build(3)(images).shape == (2, 128, 2, 2)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@pytest.mark.parametrize("norm", ["auto", "group", "pooled"])
def test_batch_norm_obeys_one_policy(name, norm, tmp_path):
    network = original(name)
    model = factory(name=name, weights=saved(network, tmp_path), norm=norm)
    backbone = model.build(3)
    count = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())

    kind = {"auto": FrozenBatchNorm2d, "group": nn.GroupNorm, "pooled": nn.BatchNorm2d}[norm]
    assert sum(isinstance(m, kind) for m in backbone.modules()) == count > 0
    assert model.bn_policy == backbone.bn_policy == {"auto": "frozen", "group": "none", "pooled": "pooled"}[norm]
    assert (norm == "pooled") == any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())


def test_a_network_without_batch_norm_states_so_under_every_norm(tmp_path):
    path = saved(original("test_vit"), tmp_path)

    for norm in ("auto", "group", "frozen", "pooled"):
        assert factory(name="test_vit", weights=path, norm=norm).bn_policy == "none"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("num_classes", [0, 7, 1000])
def test_weights_with_any_classifier_fit(suffix, num_classes, tmp_path):
    network = original("test_convnext", num_classes=num_classes)
    model = factory(name="test_convnext.r160_in1k", weights=saved(network, tmp_path, suffix))

    state = network.state_dict()
    loaded = {name.removeprefix("network."): t for name, t in model.build(3).state_dict().items()}
    assert loaded
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert model.source.startswith(f"weights{suffix} sha256:")


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    state = original("test_resnet").state_dict()
    changed = copy.copy(state)
    changed["layer9.0.conv1.weight"] = changed.pop("layer1.0.conv1.weight")
    save_file(changed, tmp_path / "renamed.safetensors")

    with pytest.raises(InputError, match=r"1 missing \(layer1.0.conv1.weight\); 1 unknown \(layer9.0.conv1.weight\)"):
        factory(name="test_resnet", weights=str(tmp_path / "renamed.safetensors")).build(3)
    with pytest.raises(InputError, match=r"missing \(.*unknown"):
        factory(name="test_vit", weights=saved(original("test_resnet"), tmp_path)).build(3)
    with pytest.raises(InputError, match="1 or 3 channels"):
        factory(name="test_resnet", weights=saved(original("test_resnet"), tmp_path)).build(4)


def test_old_files_with_tables_that_the_network_computes_fit(tmp_path):
    """timm's earlier Swin files hold ``relative_position_index`` and ``attn_mask``."""
    network = original("test_vit_relpos")
    state = {
        **network.state_dict(),
        **{n: b for n, b in network.named_buffers() if n.endswith("relative_position_index")},
    }
    assert len(state) > len(network.state_dict())
    torch.save(state, tmp_path / "old.pth")

    factory(name="test_vit_relpos", weights=str(tmp_path / "old.pth")).build(3)


def test_grey_images_are_colour_images_with_equal_channels(tmp_path):
    backbone = factory(name="test_vit", weights=saved(original("test_vit"), tmp_path)).build(1).eval()
    grey = ours(stored(64, 64))[:, :1]

    with torch.no_grad():
        torch.testing.assert_close(backbone(grey), backbone(grey.repeat(1, 3, 1, 1)), rtol=0, atol=0)


PARTS = [
    ("test_resnet", "last(1)", "layer4"),
    ("test_efficientnet", "last(1)", "blocks.4|conv_head|bn2"),
    ("test_convnext", "last(2)", "stages.2|stages.3"),
    ("test_vit", "last(1)", "blocks.5|norm"),
    ("test_vit", "last(2)", "blocks.4|blocks.5|norm"),
    ("test_mambaout", "head", ""),
]


@pytest.mark.parametrize(("name", "trainable", "expected"), PARTS)
def test_the_last_parts_train(name, trainable, expected, tmp_path):
    backbone = factory(name=name, weights=saved(original(name), tmp_path), trainable=trainable).build(3)
    prefixes = tuple(f"network.{prefix}." for prefix in expected.split("|") if prefix)

    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == parameter_name.startswith(prefixes), parameter_name


@pytest.mark.parametrize(("trainable", "policy"), [("all", "pooled"), ("last(1)", "pooled"), ("head", "frozen")])
def test_pooled_statistics_are_those_of_parts_that_train(trainable, policy, tmp_path):
    path = saved(original("test_resnet"), tmp_path)
    model = factory(name="test_resnet", weights=path, norm="pooled", trainable=trainable)
    backbone = model.build(3).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}

    backbone(ours(stored(64, 64)))

    changed = {name.split(".")[1] for name, buffer in backbone.named_buffers() if not torch.equal(buffer, before[name])}
    assert model.bn_policy == backbone.bn_policy == policy
    assert (
        changed
        == {"all": {"bn1", "conv1", "layer1", "layer2", "layer3", "layer4"}, "last(1)": {"layer4"}, "head": set()}[
            trainable
        ]
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("timm(name='test_resnt')", "Did you mean 'test_resnet'"),
        ("timm(name='no such network')", r"timm.list_models\(\)"),
        ("timm(name='hf-hub:timm/test_resnet.r160_in1k')", "network of timm"),
        ("timm(name='local-dir:/tmp/x')", "network of timm"),
        ("timm(name='timm/test_resnet')", "network of timm"),
        ("timm(name='test_resnet.r160_in2k')", "r160_in1k"),
        ("timm(name='test_resnet', weights='nothing.pth')", "nothing at"),
        ("timm(name='test_resnet', norm='frozen')", "norm of timm test_resnet"),
        ("timm(name='test_resnet', out_index=9)", "-5 to 4"),
        ("timm(name='test_vit_relpos', image_size=7)", "Choose another image_size"),
        ("timm(name='test_resnet', trainable='last(6)')", r"at most 'last\(5\)'"),
        ("timm(name='test_resnet', trainable='tail')", "trainable"),
        ("timm(name='test_resnet', trainable='head', norm='pooled')", "no statistics"),
        ("timm(name='efficientnet_b0_g8_gn', num_groups=0)", "num_groups"),
    ],
)
def test_arguments_are_checked_at_once(text, match):
    with pytest.raises(InputError, match=match):
        spec.build("model", text)


def test_timm_missing_is_an_input_error(monkeypatch):
    monkeypatch.setattr("fedmlic.models.timm.importlib.util.find_spec", lambda _: None)

    with pytest.raises(InputError, match=r"Run: pip install 'fedmlic\[pretrained\]'"):
        factory(name="test_resnet", out_index=-2)


def test_nothing_is_fetched(monkeypatch):
    def fetch(*arguments, **options):
        raise AssertionError((arguments, options))

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fetch)
    monkeypatch.setattr("socket.create_connection", fetch)

    factory(name="test_resnet.r160_in1k").build(3)


def test_a_network_that_cannot_be_built_without_storage_is_examined_in_memory(monkeypatch):
    expected = module._facts("test_vit", None, 0)
    create, devices = module._create, []

    def reads_numbers(name, options):
        network = create(name, options)
        devices.append(next(network.parameters()).device.type)
        next(network.parameters()).sum().item()
        return network

    monkeypatch.setattr(module, "_create", reads_numbers)
    state = torch.get_rng_state()

    assert module._facts.__wrapped__("test_vit", None, 0) == expected
    assert devices == ["meta", "cpu", "cpu"]
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_that_are_not_batch_norms_are_refused():
    from timm.layers import EvoNorm2dB0

    with pytest.raises(InputError, match="got a EvoNorm2dB0 at '1'"):
        module._check_norms("x", nn.Sequential(nn.Identity(), EvoNorm2dB0(4)))

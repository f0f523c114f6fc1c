"""ResNet against torchvision's own network with the same weights."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.model import FrozenBatchNorm2d
from fedmlic.models.resnet import resnet


@pytest.fixture(scope="module")
def reference():
    """torchvision's ResNet-18 with random weights and BatchNorm statistics that are not the initial ones."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(weights=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(reference.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def stored():
    """uint8 images as the corpus keeps them."""
    return torch.randint(0, 256, (2, 96, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def torchvision_features(reference, stored):
    """torchvision's own preprocessing of pixels, and its features before the average pool."""
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms.functional import convert_image_dtype, normalize

    images = convert_image_dtype(stored.permute(0, 3, 1, 2), torch.float32)
    images = normalize(images, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return create_feature_extractor(reference, ["layer4"])(images)["layer4"]


def assert_close_to_scale(features, expected):
    """The change of scale rounds in another order; 18 layers carry that to cancelling sums."""
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


def ours(stored):
    return (stored.permute(0, 3, 1, 2).float() - 127.5) / 63.75


@pytest.mark.parametrize("norm", ["auto", "pooled"])
def test_features_equal_torchvisions_from_the_stored_pixels_on(reference, weights, stored, norm):
    network = resnet(weights=weights, norm=norm).build(3).eval()

    with torch.no_grad():
        features, expected = network(ours(stored)), torchvision_features(reference, stored)

    assert features.shape == (2, 512, 3, 2)
    assert_close_to_scale(features, expected)


def test_features_equal_torchvisions_to_1e6_on_the_same_numbers(reference, weights, stored):
    """Without the change of scale only the same operations are left."""
    network = resnet(weights=weights).build(3).eval()
    network.pixels = nn.Identity()
    reference.avgpool, pool = nn.Identity(), reference.avgpool
    reference.fc, head = nn.Identity(), reference.fc
    try:
        with torch.no_grad():
            features, expected = network(ours(stored)), reference(ours(stored))
    finally:
        reference.avgpool, reference.fc = pool, head

    torch.testing.assert_close(features.flatten(1), expected, rtol=1e-6, atol=1e-6)


def test_a_grey_image_is_a_colour_image_with_equal_channels(weights, stored):
    network = resnet(weights=weights).build(1).eval()
    grey = ours(stored)[:, :1]

    with torch.no_grad():
        torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)), rtol=0, atol=0)


def test_pretrained_statistics_stay_and_their_affine_part_trains(weights, stored):
    model = resnet(weights=weights)
    network = model.build(3).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}

    network(ours(stored)).square().sum().backward()

    assert model.pretrained
    assert model.source.startswith("resnet18.safetensors sha256:")
    assert model.bn_policy == network.bn_policy == "frozen"
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in network.modules()) == 20
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name])
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_from_scratch_it_is_a_group_norm_network_without_a_head():
    model = resnet()
    network = model.build(3)

    assert not model.pretrained
    assert model.bn_policy == network.bn_policy == "none"
    assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == 20
    assert not dict(network.named_buffers())
    assert sum(p.numel() for p in network.parameters()) == 11_176_512
    assert not [name for name in network.state_dict() if name.startswith("fc")]


def test_pooled_keeps_batch_norm_and_says_so():
    network = resnet(norm="pooled").build(3)

    assert network.bn_policy == "pooled"
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 20


def test_pretrained_convolutions_with_group_norm(reference, weights):
    network = resnet(weights=weights, norm="group").build(3)

    assert network.bn_policy == "none"
    assert torch.equal(network.layer1[0].conv1.weight, reference.layer1[0].conv1.weight)
    assert torch.equal(network.layer1[0].bn1.weight, reference.layer1[0].bn1.weight)


def test_depths_change_the_number_of_features():
    assert resnet(depth=50).build(4)(torch.zeros(1, 4, 64, 64)).shape == (1, 2048, 2, 2)


def test_weights_of_another_network_are_refused(weights, tmp_path):
    with pytest.raises(InputError, match=r"resnet18.safetensors sha256:\w+ to fit the network.*missing.*layer1"):
        resnet(depth=50, weights=weights).build(3)
    with pytest.raises(InputError, match="1 or 3 channels"):
        resnet(weights=weights).build(4)
    with pytest.raises(InputError, match="nothing at"):
        spec.build("model", f"resnet(weights={str(tmp_path / 'missing.pth')!r})")
    with pytest.raises(InputError, match="'frozen'"):
        spec.build("model", "resnet(norm='frozen')")
    with pytest.raises(InputError, match="depth"):
        spec.build("model", "resnet(depth=19)")


def test_nothing_is_fetched_unless_asked(reference, stored, monkeypatch):
    calls = []

    def fetch(url, **options):
        calls.append((url, options))
        return reference.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)

    resnet().build(3)
    assert not calls
    model = resnet(download=True)
    network = model.build(3).eval()

    assert model.source == "torchvision IMAGENET1K_V1"
    assert model.bn_policy == "frozen"
    [(url, options)] = calls
    assert "resnet18" in url
    assert options["weights_only"]
    assert options["check_hash"]
    with torch.no_grad():
        assert_close_to_scale(network(ours(stored)), torchvision_features(reference, stored))
    with pytest.raises(InputError, match="IMAGENET1K_V1"):
        resnet(download=True, weights="IMAGENET1K_V9").build(3)


def test_a_failed_download_is_an_input_error(monkeypatch):
    def fetch(url, **options):
        raise OSError((url, options))

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)

    with pytest.raises(InputError, match="Copy the file"):
        resnet(download=True).build(3)

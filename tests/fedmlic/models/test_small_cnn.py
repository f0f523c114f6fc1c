"""The default backbone: its size, its shapes, and that it learns."""

import pytest
import torch

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.model import Classifier
from fedmlic.models.small_cnn import small_cnn


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_default_has_the_documented_number_of_parameters():
    """Convolutions 3*32*9 + 32*64*9 + 64*64*9; weight and bias of norms 2 * (32 + 64 + 64)."""
    assert count(small_cnn().build(3)) == 864 + 18_432 + 36_864 + 320 == 56_480
    assert count(small_cnn().build(1)) == 56_480 - 2 * 32 * 9


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("side", [32, 64])
def test_stride_is_pixels_per_place(stride, side):
    network = small_cnn(stride=stride, width=4).build(3)

    assert network(torch.zeros(2, 3, side, side)).shape == (2, 8, side // stride, side // stride)


def test_each_block_adds_one_convolution_and_its_norm():
    sizes = [count(small_cnn(width=8, num_blocks=n).build(3)) for n in (0, 1, 2)]

    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == 16 * 16 * 9 + 2 * 16


def test_norm_is_what_the_policy_says():
    grouped, pooled = small_cnn(width=12, num_groups=8), small_cnn(norm="pooled")

    groups = [m.num_groups for m in grouped.build(3).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert groups == [6, 8, 8]
    assert grouped.bn_policy == grouped.build(3).bn_policy == "none"
    assert pooled.bn_policy == pooled.build(3).bn_policy == "pooled"
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in pooled.build(3).modules()) == 3


@pytest.mark.parametrize("text", ["small_cnn(width=0)", "small_cnn(stride=5)", "small_cnn(norm='batch')"])
def test_arguments_out_of_range_are_input_errors(text):
    with pytest.raises(InputError, match="small_cnn"):
        spec.build("model", text)


def test_it_learns_where_a_bright_square_is_green_or_red():
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=rng) * 0.3
    truth = torch.randint(0, 2, (64, 2), generator=rng).float()
    for image, (red, green) in zip(images, truth, strict=True):
        image[0, 4:12, 4:12] += 2 * red
        image[1, 18:26, 10:18] += 2 * green
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(small_cnn(width=8).build(3), 2, "logsumexp")
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)

    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(images), truth).backward()
        optimiser.step()

    assert ((network(images) > 0) == truth.bool()).float().mean() > 0.95

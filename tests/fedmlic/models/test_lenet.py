"""lenet against the same layers written as usual: ReLU before the maximum, dense layers or convolutions throughout."""

import pytest
import torch
from torch import nn

from fedmlic.models.lenet import lenet


def plain(network, *, dense):
    """The usual network with the weights of ``network``."""
    first, second = (each for each in network.convolutions if isinstance(each, nn.Conv2d))
    third, fourth = network.dense
    if dense:
        layers = nn.Linear(256, 120), nn.Linear(120, 84)
        for layer, convolution in zip(layers, (third, fourth), strict=True):
            layer.weight.data, layer.bias.data = convolution.weight.data.flatten(1), convolution.bias.data
        tail = [nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Unflatten(1, (84, 1, 1))]
    else:
        tail = [third, nn.ReLU(), fourth, nn.ReLU()]
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), *tail)


@pytest.mark.parametrize(("side", "dense", "places"), [(28, True, 1), (28, False, 1), (31, False, 1), (40, False, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_usual_network(side, dense, places, memory_format):
    torch.manual_seed(0)
    network = lenet().build(1).to(memory_format=memory_format)
    usual = plain(network, dense=dense)
    images = torch.randn(3, 1, side, side).to(memory_format=memory_format)
    weights = torch.randn(3, 84, places, places)

    expected = usual(images)
    wanted = torch.autograd.grad((expected * weights).sum(), [usual[0].weight, usual[3].weight])
    found = network(images)
    got = torch.autograd.grad((found * weights).sum(), [usual[0].weight, usual[3].weight])

    assert found.shape == (3, 84, places, places)
    torch.testing.assert_close(found, expected)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_it_has_the_parameters_of_its_page():
    assert sum(parameter.numel() for parameter in lenet().build(1).parameters()) == 43_576

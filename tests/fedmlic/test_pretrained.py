"""Options that pretrained backbones share: parts that train, scales of pixels."""

import pytest
import torch
from torch import nn

from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.learner import pooled_moments
from fedmlic.model import Classifier, FrozenBatchNorm2d
from fedmlic.models.resnet import resnet
from fedmlic.pretrained import bn_policy_of, check_trainable, num_parts_trained, parts_by_prefix, to_scale, train_parts


@pytest.mark.parametrize("text", ["last", "last(0)", "last(-1)", "last(1.5)", "last(²)", "none", "", "all()", "head\n"])
def test_other_forms_of_trainable_are_refused(text):
    with pytest.raises(InputError, match=r"'all', 'last\(n\)'"):
        num_parts_trained(text)


def test_the_policy_of_a_norm():
    assert bn_policy_of("x", "auto", pretrained=True) == "frozen"
    assert bn_policy_of("x", "auto", pretrained=False) == bn_policy_of("x", "group", pretrained=True) == "none"
    assert bn_policy_of("x", "pooled", pretrained=False) == "pooled"
    with pytest.raises(InputError, match="norm of x to be group or pooled"):
        bn_policy_of("x", "frozen", pretrained=False)


def test_statistics_of_nothing_are_not_used():
    check_trainable("x", "all", 3, "pooled", pretrained=False)
    check_trainable("x", "last(3)", 3, "pooled", pretrained=False)
    check_trainable("x", "last(2)", 3, "pooled", pretrained=True)
    check_trainable("x", "head", 3, "none", pretrained=False)
    for trainable in ("last(2)", "head"):
        with pytest.raises(InputError, match="no statistics"):
            check_trainable("x", trainable, 3, "pooled", pretrained=False)
    with pytest.raises(InputError, match=r"at most 'last\(3\)'"):
        check_trainable("x", "last(4)", 3, "none", pretrained=True)


def three_parts():
    """Convolution and BatchNorm three times, with statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)))
    network(torch.randn(4, 3, 5, 5) * 3 + 1)
    return network


@pytest.mark.parametrize(
    ("trainable", "count"), [("all", 3), ("last(3)", 3), ("last(2)", 2), ("last(1)", 1), ("head", 0)]
)
def test_the_last_parts_train_and_the_others_keep_their_statistics(trainable, count):
    network, images = three_parts(), torch.randn(4, 3, 5, 5)
    expected = network[: 3 - count].eval()(images)
    network.train()

    train_parts(network, parts_by_prefix(network, [["0"], ["1"], ["2"]]), trainable)

    trains = [all(p.requires_grad for p in part.parameters()) for part in network]
    still = [not any(p.requires_grad for p in part.parameters()) for part in network]
    assert trains == [n >= 3 - count for n in range(3)]
    assert still == [n < 3 - count for n in range(3)]
    kinds = [type(part[1]) for part in network]
    assert kinds == [FrozenBatchNorm2d] * (3 - count) + [nn.BatchNorm2d] * count
    torch.testing.assert_close(network.train()[: 3 - count](images), expected)


@pytest.mark.parametrize(
    ("trainable", "sent"), [("head", []), ("last(1)", ["layer4"]), ("last(2)", ["layer3", "layer4"])]
)
@pytest.mark.parametrize("norm", ["group", "pooled"])
def test_what_does_not_train_is_never_sent(tmp_path, trainable, sent, norm):
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    model = resnet(weights=str(tmp_path / "resnet18.pth"), norm=norm, trainable=trainable)
    network = Classifier(model.build(3), 4)

    resident = Resident(network, num_labels=4, label_rows=Classifier.label_rows, moments=pooled_moments(network))

    prefixes = {name.split(".")[1] for name in resident.layout.names if name.startswith("backbone.")}
    assert prefixes == set(sent)
    assert {"head.weight", "head.bias"} <= set(resident.layout.names)
    statistics = [name for name in resident.layout.names if name.endswith("running_var")]
    assert bool(statistics) == (norm == "pooled" and trainable != "head")
    assert network.backbone.bn_policy == model.bn_policy
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == (model.bn_policy == "pooled")


def test_a_scale_takes_this_projects_pixels_to_the_networks():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.5)
    stored = torch.arange(256.0).repeat(3, 1, 1)
    scale, shift = to_scale(mean, std)

    ours = (stored - 127.5) / 63.75 * scale + shift

    expected = (stored / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(ours, expected)


def test_batch_norm_without_weights_goes_with_the_module_around_it():
    network = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)) for _ in range(2)))
    parts = parts_by_prefix(network, [["0"], ["1"]])

    train_parts(network, parts, "all")
    assert [type(part[1]) for part in network] == [nn.BatchNorm2d, nn.BatchNorm2d]
    train_parts(network, parts, "last(1)")
    assert [type(part[1]) for part in network] == [FrozenBatchNorm2d, nn.BatchNorm2d]

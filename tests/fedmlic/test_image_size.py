"""Images that are too small for a backbone are found before round 1, with the size that it needs."""

import pytest
import torch

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_network
from fedmlic.method import Task
from fedmlic.seeds import torch_global_stream

PLUG = """
import torch
from torch import nn

from fedmlic.model import Backbone, Model


class _Net(Backbone):
    num_features = 4
    bn_policy = "none"

    def __init__(self, channels, never):
        super().__init__()
        self.conv, self.dropout, self.never = nn.Conv2d(channels, 4, 11), nn.Dropout(0.5), never
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        if self.never:
            raise RuntimeError("nothing fits")
        if self.training:
            self.seen += 1
        return self.dropout(self.conv(images))


def net(*, never: bool = False) -> Model:
    return Model(lambda channels: _Net(channels, never))
"""


def built(model, shape, method="bce()"):
    return build_network(Experiment(model=model, method=method), Task(("a", "b"), shape, spec.build("model", model), 0))


def runs(model, side):
    """Whether one image of this size goes through, tried here and not by what is tested."""
    with torch_global_stream(0, "init"):
        backbone = spec.build("model", model).build(3).eval()
    try:
        with torch.no_grad():
            backbone(torch.rand(1, 3, side, side))
    except (RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize(
    ("model", "least", "hint"),
    [
        ("convnext()", 32, "Give image_size=64."),
        ("lenet()", 28, "Use larger images or another model."),
        ("efficientnet_lite0()", 5, "Use larger images or another model."),
        ("small_cnn(width=8)", 3, "Use larger images or another model."),
        ("timm(name='convnext_atto')", 32, "Give image_size=64."),
        ("timm(name='test_resnet')", 5, "Give image_size=16."),
    ],
)
def test_images_that_are_too_small_are_refused_with_the_size_that_is_enough(model, least, hint):
    if model.startswith("timm"):
        pytest.importorskip("timm")
    assert runs(model, least)
    assert not runs(model, least - 1)

    built(model, (least, least, 3))
    with pytest.raises(InputError) as caught:
        built(model, (least - 1, least - 1, 3))

    name = model.partition("(")[0]
    expected = f"Expected images of at least {least} pixels a side for {name}, got {least - 1}. {hint}"
    assert str(caught.value) == expected


def test_the_shorter_side_counts():
    with pytest.raises(InputError, match="at least 32 pixels a side for convnext, got 31"):
        built("convnext()", (100, 31, 3))


@pytest.mark.parametrize("model", ["convnext(image_size=64)", "vit(patch_size=32)", "clip_image()", "resnet()"])
@pytest.mark.parametrize("side", [3, 128])
def test_networks_that_take_any_size_are_built(model, side):
    built(model, (side, side + 2, 3))


@pytest.mark.parametrize("side", [48, 128, 300])
def test_an_image_size_that_is_too_small_itself_is_refused_with_the_reason(side):
    expected = rf"to take images of {side} x {side + 16} pixels, got: .*Choose a larger image_size"
    with pytest.raises(InputError, match=expected):
        built("convnext(image_size=16)", (side, side + 16, 3))


def test_a_trial_leaves_the_network_as_it_was_and_draws_nothing(plug):
    plug("small_nets", PLUG)
    torch.manual_seed(3)
    state = torch.get_rng_state()

    _, network = built("small_nets.net()", (12, 12, 3))

    assert torch.equal(state, torch.get_rng_state())
    assert network.backbone.seen == 0
    assert all(module.training for module in network.modules())
    with pytest.raises(InputError, match=r"at least 11 pixels a side for small_nets\.net, got 10\. Use larger images"):
        built("small_nets.net()", (10, 12, 3))
    with pytest.raises(InputError, match=r"got: nothing fits\. Use larger images or another model"):
        built("small_nets.net(never=True)", (10, 12, 3))


def test_a_layer_that_is_kept_in_evaluation_mode_stays_so(plug):
    plug("small_nets", PLUG)
    from fedmlic.image_size import check_image_size

    backbone = spec.build("model", "small_nets.net()").build(3)
    backbone.dropout.eval()
    check_image_size("small_nets.net()", backbone, (16, 16, 3))

    assert [backbone.training, backbone.dropout.training] == [True, False]


def test_large_images_that_stay_large_are_not_tried(plug):
    plug("small_nets", PLUG)

    built("small_nets.net(never=True)", (128, 128, 3))


def test_a_network_is_tried_once_in_a_process(plug, monkeypatch):
    """Of the round's incoming model a second network is built in the same process."""
    plug("small_nets", PLUG)
    built("small_nets.net()", (12, 14, 3))
    monkeypatch.setattr("fedmlic.image_size._reason", lambda *_: "tried again")

    built("small_nets.net()", (12, 14, 3))
    for model, shape in (("small_nets.net(never=False)", (12, 14, 3)), ("small_nets.net()", (14, 12, 3))):
        with pytest.raises(InputError, match="tried again"):
            built(model, shape)


def test_a_run_with_images_that_are_too_small_stops_before_round_1(play, tmp_path):
    with pytest.raises(InputError, match=r"at least 32 pixels a side for convnext, got 24\. Give image_size=64\."):
        play(tmp_path / "run", model="convnext()")

    assert not (tmp_path / "run").exists()

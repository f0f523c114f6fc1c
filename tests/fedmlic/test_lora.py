"""Adapters of low rank against W + (alpha / rank) B A written out, and in whole federated rounds."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from clients.host import Host
from clients.opening import open_federation
from fedmlic import spec
from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.learner import build_learner
from fedmlic.lora import Adapted, Lora, add_lora, read_lora
from fedmlic.model import Classifier, FrozenBatchNorm2d
from fedmlic.protocol import Request
from fedmlic.seeds import torch_global_stream
from fedmlic.update import units_for
from sim.predict import load_predictor
from sim.run import resume
from strategies.server.server import build_server
from strategies.strategy import Round

TOWER = "clip_image(trainable='lora(2, alpha=6)')"


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disturbed(network):
    """Adapters that are not at their start."""
    for seed, layer in enumerate(module for module in network.modules() if isinstance(module, Adapted)):
        layer.lora_b.data.copy_(values(*layer.lora_b.shape, seed=seed))
    return network


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora(8)", Lora(8, 8.0)),
        (" lora ( rank = 4 , alpha=1.5 ) ", Lora(4, 1.5)),
        ("lora(4, layers=attention, freeze_a=True)", Lora(4, 4.0, "attention", freeze_a=True)),
        ("lora(4, layers='attention')", Lora(4, 4.0, "attention")),
        ("head", None),
        ("last(2)", None),
        ("loran(2)", None),
    ],
)
def test_the_forms_of_the_text(text, expected):
    assert read_lora(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "lora",
            "lora()",
            "lora(0)",
            "lora(-1)",
            "lora(1.5)",
            "lora(True)",
            "lora(a)",
            "lora(4, 8)",
            "lora(4, rank=8)",
        ),
        *("lora(4, alpha=0)", "lora(4, alpha=nan)", "lora(4, alpha=True)", "lora(4, alpha=1e999)", "lora(4, alpha=)"),
        *("lora(4, layers=['attention'])", "lora(4, layers={})", "lora(4, alpha={[]: 1})", "lora([])"),
        *("lora(4, layers=all)", "lora(4, freeze_a=1)", "lora(4, dropout=0.1)", "lora(rank=4, rank=4)"),
    ],
)
def test_other_forms_are_refused(text):
    with pytest.raises(InputError, match=r"Expected trainable to be lora\(rank\)"):
        read_lora(text)


def test_a_layer_computes_w_plus_alpha_over_rank_b_a_and_starts_as_w():
    plain = nn.Linear(7, 5)
    layer = Adapted(copy.deepcopy(plain), Lora(2, 3.0))
    inputs = values(4, 3, 7)

    assert torch.equal(layer(inputs), plain(inputs))
    assert layer.lora_a.abs().max() <= 7**-0.5
    disturbed(layer)

    whole = plain.weight + 3.0 / 2 * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(layer(inputs), F.linear(inputs, whole, plain.bias))
    torch.testing.assert_close(layer.weight, whole)
    assert layer.bias is layer.base.bias


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_one_pixel_is_adapted_likewise(stride):
    plain = nn.Conv2d(7, 5, 1, stride=stride, bias=False)
    layer = Adapted(copy.deepcopy(plain), Lora(2, 2.0))
    inputs = values(2, 7, 5, 4)

    assert torch.equal(layer(inputs), plain(inputs))
    disturbed(layer)

    whole = plain.weight + (layer.lora_b @ layer.lora_a)[:, :, None, None]
    torch.testing.assert_close(layer(inputs), F.conv2d(inputs, whole, stride=stride))
    torch.testing.assert_close(layer.weight, whole)


def network():
    attention = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
    return nn.ModuleDict(
        {"stem": nn.Conv2d(3, 8, 3), "attn": attention, "mlp": nn.Linear(8, 32), "narrow": nn.Linear(8, 2)}
    )


def test_which_layers_are_adapted():
    assert add_lora(network(), Lora(2, 2.0), "x") == ["attn.qkv", "attn.proj", "mlp"]  # 2 * (8 + 2) > 8 * 2
    assert add_lora(network(), Lora(2, 2.0, "attention"), "x") == ["attn.qkv", "attn.proj"]
    assert add_lora(network(), Lora(1, 1.0), "x", {"mlp.weight", "narrow.weight"}) == ["mlp", "narrow"]
    with pytest.raises(InputError, match="smaller rank"):
        add_lora(network(), Lora(9, 9.0), "x")


def test_a_layer_in_two_places_stays_one_layer():
    shared = nn.Linear(8, 8)
    both = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    add_lora(both, Lora(1, 1.0), "x")

    assert isinstance(both["a"], Adapted)
    assert both["a"] is both["b"][0]


def test_networks_that_adapters_would_miss_are_refused():
    with pytest.raises(InputError, match="MultiheadAttention at '0'"):
        add_lora(nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 64)), Lora(1, 1.0), "x")
    with pytest.raises(InputError, match=r"got 2\.7% of them there"):
        add_lora(nn.Sequential(nn.Conv2d(16, 16, 3), nn.Linear(8, 8)), Lora(1, 1.0), "x")
    with pytest.raises(InputError, match="50, 101 or 152"):
        spec.build("model", "resnet(depth=18, trainable='lora(4)')")


BACKBONES = {
    "vit": "patch_size=32",
    "convnext": "",
    "clip_image": "",
    "siglip_image": "features='pooled'",
    "efficientnet_lite0": "norm='group'",
    "resnet": "depth=50",
    "timm": "name='test_vit3'",
}


def built(name, trainable):
    options = ", ".join(part for part in (BACKBONES[name], f"trainable='{trainable}'") if part)
    with torch_global_stream(0, "init"):
        return spec.build("model", f"{name}({options})").build(3)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_starts_as_the_frozen_one_and_only_adapters_train(name):
    if name == "timm":
        pytest.importorskip("timm")
    frozen, adapted = built(name, "head").eval(), built(name, "lora(2)")
    images = values(2, 3, 64, 64)

    with torch.no_grad():
        assert torch.equal(frozen(images), adapted.eval()(images))
    disturbed(adapted.train())(images).square().sum().backward()

    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert trained == {n for n, _ in adapted.named_parameters() if n.endswith(("lora_a", "lora_b"))}
    for parameter_name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == (parameter_name in trained), parameter_name
        if parameter.grad is not None:
            assert parameter.grad.abs().max() > 0, parameter_name
    resident = Resident(Classifier(adapted, 4), num_labels=4, label_rows=Classifier.label_rows)
    assert set(resident.layout.names) == {f"backbone.{n}" for n in trained} | {"head.weight", "head.bias"}


def test_frozen_a_is_not_exchanged_and_is_the_same_everywhere():
    first, second = (built("clip_image", "lora(2, freeze_a=True)") for _ in range(2))

    trained = [n for n, p in first.named_parameters() if p.requires_grad]
    assert trained
    assert all(n.endswith("lora_b") for n in trained)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_statistics_of_pretrained_batch_norm_stay(tmp_path):
    from torchvision.models import resnet50

    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    text = f"resnet(depth=50, weights='{tmp_path / 'resnet50.pth'}', norm='pooled', trainable='lora(4)')"
    model = spec.build("model", text)
    found = model.build(3)

    assert model.bn_policy == found.bn_policy == "frozen"
    assert any(isinstance(module, FrozenBatchNorm2d) for module in found.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())


def made_host(tiny, size=1, **changes):
    experiment, runtime = tiny(model=TOWER, holdout_fraction=0.0, **changes)
    server = build_server(experiment, runtime)
    learner = build_learner(experiment, server.learner.task.label_names, server.learner.task.image_shape)
    return Host("test", experiment, open_federation(experiment, runtime, server.corpus), learner, vectorize=size)


def played(host, clients=(0, 1, 2), strategy="fedavg()"):
    """Updates of a round, and what it started from: adapters away from zero."""
    layout = host.layout
    flat = host._learner.resident.flat.clone()
    for seed, (name, view) in enumerate(layout.views(flat)):
        if name.endswith("lora_b"):
            view.copy_(0.05 * values(*view.shape, seed=seed))
    weighting = spec.build("strategy", strategy).weighting
    request = Request("train", 1, flat, units_for(weighting, [1] * 6, 10), weighting, each=True)
    return host.play(request, list(clients)), flat


@pytest.mark.parametrize("freeze_a", [False, True])
def test_a_round_averages_adapters_and_frozen_tensors_stay(tiny, monkeypatch, freeze_a):
    if freeze_a:
        monkeypatch.setitem(globals(), "TOWER", TOWER.replace("alpha=6", "alpha=6, freeze_a=True"))
    host = made_host(tiny, strategy="fedavg()")
    before = {name: tensor.clone() for name, tensor in host._learner.resident.other_state().items()}
    reply, flat = played(host)
    layout = host.layout

    after = host._learner.resident.other_state()
    assert not any(turn.error for turn in reply.turns)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    suffixes = ("lora_b",) if freeze_a else ("lora_a", "lora_b")
    assert all(name.endswith(suffixes) or name.startswith("head.") for name in layout.names)
    sizes = [turn.num_images for turn in reply.turns]
    models = [dict(layout.views(update.mean(flat))) for update in reply.updates]
    state = spec.build("strategy", "fedavg()")
    here = Round(1, 6, 3, layout)
    merged = dict(layout.views(state.aggregate(state.init(flat, layout), reply.updates, here).flat))

    def plain_mean(of):
        return sum(size * of(model) for size, model in zip(sizes, models, strict=True)) / sum(sizes)

    for name in layout.names:
        torch.testing.assert_close(merged[name], plain_mean(lambda model, name=name: model[name]), rtol=1e-5, atol=1e-6)
    layer = next(name.removesuffix("lora_b") for name in layout.names if name.endswith("lora_b"))
    a = {} if not freeze_a else {f"{layer}lora_a": before[f"{layer}lora_a"]}

    def product(model):
        return model[f"{layer}lora_b"] @ {**model, **a}[f"{layer}lora_a"]

    distance = (product(merged) - plain_mean(product)).abs().max()
    moved = (plain_mean(product) - product(dict(layout.views(flat)))).abs().max()
    # The mean of products is that of B times A exactly where A is the same for all.
    assert (distance <= 1e-5 * moved) == freeze_a


def test_clients_trained_at_once_are_those_trained_one_by_one(tiny):
    changes = {"strategy": "fedavg()", "batch_size": 7}
    (alone, flat), (together, _) = (played(made_host(tiny, size, **changes)) for size in (1, 3))

    for left, right in zip(together.updates, alone.updates, strict=True):
        assert left.clients == right.clients
        moved = (right.mean(flat) - flat).abs().max()
        assert (left.mean(flat) - right.mean(flat)).abs().max() <= 2e-5 + 1e-3 * moved


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_killed_run_goes_on_to_the_same_adapters_and_predicts(play, tmp_path, monkeypatch):
    from strategies.server import rounds

    changes = {"model": TOWER, "num_rounds": 2, "mods": "int8()"}
    whole = play(tmp_path / "whole", **changes)
    original, calls = rounds.sample_cohort, []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "sample_cohort", broken)
        with pytest.raises(Killed):
            play(tmp_path / "broken", **changes)
    resumed = resume(tmp_path / "broken")

    assert resumed["weights_sha256"] == whole["weights_sha256"]
    checkpoint = load_file(max(Path(tmp_path / "whole" / "checkpoints").glob("*.safetensors")))
    sent = [name for name in checkpoint if name.startswith("model/")]
    assert all(name.endswith(("lora_a", "lora_b")) or "head." in name for name in sent)
    predictor = load_predictor(tmp_path / "whole")
    scores = predictor.scores(values(2, 24, 24, 3).mul(50).add(128).clamp(0, 255).to(torch.uint8).numpy())
    assert scores.shape == (2, 10)

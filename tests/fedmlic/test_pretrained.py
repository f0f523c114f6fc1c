"""What pretrained backbones share: parts that train, scales and sizes of images, files of weights."""

import argparse
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fedmlic.arrays import Resident
from fedmlic.errors import InputError
from fedmlic.learner import pooled_moments
from fedmlic.model import Classifier, FrozenBatchNorm2d
from fedmlic.models.resnet import resnet
from fedmlic.pretrained import (
    PixelScale,
    Resize,
    bn_policy_of,
    check_channels,
    check_trainable,
    check_weights_file,
    load_weights,
    num_parts_trained,
    parts_by_prefix,
    read_weights,
    renamed,
    to_scale,
    train_parts,
)


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


def images():
    return torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def test_a_grey_image_becomes_equal_channels_and_other_channels_are_refused():
    scale = PixelScale((0.1, 0.5, 0.9), (0.2, 0.3, 0.5))
    grey = images()[:, :1]

    assert torch.equal(scale(grey), scale(grey.expand(-1, 3, -1, -1)))
    assert not scale.state_dict()
    assert [check_channels("x", count, pretrained=True) for count in (1, 3)] == [3, 3]
    assert check_channels("x", 4, pretrained=False) == 4
    with pytest.raises(InputError, match="1 or 3 channels for a pretrained x"):
        check_channels("x", 4, pretrained=True)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 60), (9, 7)])
def test_images_are_resized_as_pillow_does(mode, size):
    stored = np.random.default_rng(0).integers(60, 200, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(stored)
    batch = torch.from_numpy(stored).permute(2, 0, 1)[None].float()
    how = Image.Resampling[mode.upper()]
    height, width = size
    short = min(size)
    cut = picture.resize((20 * width // short, 20 * height // short), how)
    left, top = (cut.width - 16) // 2, (cut.height - 16) // 2

    for made, expected in (
        (Resize(16, mode), picture.resize((16, 16), how)),
        (Resize(16, mode, crop=True, resized=20), cut.crop((left, top, left + 16, top + 16))),
    ):
        found = made(batch)[0].permute(1, 2, 0).numpy()
        assert found.shape == (16, 16, 3)
        assert np.abs(found - np.asarray(expected, dtype=float)).max() <= 1.01
    same = torch.rand(1, 3, 16, 16)
    assert Resize(16, mode)(same) is same


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_survive_the_file(tmp_path, suffix):
    network = three_parts()
    path = str(tmp_path / f"weights{suffix}")
    save_file(network.state_dict(), path) if suffix == ".safetensors" else torch.save(network.state_dict(), path)
    other = three_parts()

    load_weights(other, {**read_weights(path), "fc.weight": torch.zeros(2)}, ("fc.",), "weights")

    torch.testing.assert_close(other.eval()(images()), network.eval()(images()), rtol=0, atol=0)
    assert check_weights_file(path).startswith(f"weights{suffix} sha256:")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_below_the_users_home_are_found(tmp_path, monkeypatch, suffix):
    """As folders of data sets are, and as recipes write them: '~/weights/NAME'."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tensors = {"weight": torch.arange(3.0)}
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)

    assert check_weights_file(f"~/weights{suffix}").startswith(f"weights{suffix} sha256:")
    assert torch.equal(read_weights(f"~/weights{suffix}")["weight"], tensors["weight"])


def test_misfits_are_listed_together_and_nothing_is_loaded():
    network = three_parts()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {
        **before,
        "0.0.weight": torch.zeros(4, 1, 3, 3),
        "1.1.weight": torch.full((3,), math.nan),
        "head.weight": torch.zeros(2),
    }
    del tensors["1.1.running_var"]

    with pytest.raises(InputError) as caught:
        load_weights(network, tensors, ("fc.",), "weights.pth")

    for part in ("1 missing (1.1.running_var)", "1 unknown (head.weight)", "0.0.weight (4, 1, 3, 3) for (3, 3, 1, 1)"):
        assert part in str(caught.value)
    assert "1 not finite (1.1.weight)" in str(caught.value)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("run",))


def test_unreadable_files_are_input_errors(tmp_path, capsys):
    with pytest.raises(InputError, match="nothing at"):
        read_weights(str(tmp_path / "none.pth"))
    (tmp_path / "weights.pkl").write_bytes(b"")
    with pytest.raises(InputError, match="ending in"):
        read_weights(str(tmp_path / "weights.pkl"))
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(str(tmp_path / name))
    torch.save({"state_dict": {}}, tmp_path / "nested.pth")
    with pytest.raises(InputError, match="state dict"):
        read_weights(str(tmp_path / "nested.pth"))
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"cannot be read so: it holds objects .* such as print, which"):
        read_weights(str(tmp_path / "evil.pth"))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_larger_than_the_memory_is_not_called_broken(tmp_path, monkeypatch, suffix):
    def load(*_, **__):
        raise MemoryError

    monkeypatch.setattr("torch.load", load)
    monkeypatch.setattr("fedmlic.pretrained.load_file", load)
    (tmp_path / f"weights.{suffix}").write_bytes(b"much")

    with pytest.raises(InputError, match=rf"enough memory for what .*weights\.{suffix}.*Use a machine with more"):
        read_weights(str(tmp_path / f"weights.{suffix}"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"a", b"error", b"Repository not found", b"hello world", b"<html>404</html>", b"PK\x03\x04"),
        *(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", b"\x80\x02}q\x00."),
    ],
)
def test_what_a_failed_download_leaves_is_an_input_error(tmp_path, suffix, content):
    (tmp_path / f"weights{suffix}").write_bytes(content)

    with pytest.raises(InputError, match=f"weights{suffix}") as caught:
        read_weights(str(tmp_path / f"weights{suffix}"))

    assert "it was cut off or damaged, or is no file of weights" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*TorchScript", "ignore:.*torch.jit")
@pytest.mark.parametrize("zipped", [True, False])
def test_nobody_is_advised_to_run_what_is_in_a_file(tmp_path, zipped):
    """As torch's own messages do, which say that reading it in the other way will likely succeed."""
    torch.save({"weight": torch.ones(300)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>\n<html><body>Not found</body></html>\n" * 50)
    objects = {"weight": torch.ones(3), "share": Fraction(1, 2)}
    torch.save(objects, tmp_path / "objects.pth", _use_new_zipfile_serialization=zipped)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pth")
    expected = {
        "cut.pth": "cut off or damaged",
        "page.pth": "such as a page of an error",
        "objects.pth": "objects beside tensors, such as fractions.Fraction",
        "script.pth": "a TorchScript archive, which holds code",
    }
    for name, told in expected.items():
        with pytest.raises(InputError, match=told) as caught:
            read_weights(str(tmp_path / name))
        assert not any(word in str(caught.value) for word in ("torch.load", "weights_only", "trust", "succeed"))


def test_a_file_that_this_user_may_not_read_is_not_called_broken(tmp_path, monkeypatch):
    def load(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torch.load", load)
    (tmp_path / "weights.pth").write_bytes(b"much")

    with pytest.raises(InputError, match=r"cannot be read so: Permission denied\. Copy it"):
        read_weights(str(tmp_path / "weights.pth"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new", [True, False])
def test_files_that_were_cut_off_or_have_a_wrong_byte_are_input_errors_or_tensors(tmp_path, new):
    path, rng = tmp_path / "weights.pth", np.random.default_rng(0)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        for content in (bytes(changed), whole[: rng.integers(len(whole))]):
            path.write_bytes(content)
            try:
                found = read_weights(str(path))
            except InputError:
                outcomes.add("refused")
            else:
                outcomes.add("read")
                assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())

    assert outcomes == {"refused", "read"}


WRAPPED = {
    "as it is": lambda state: state,
    "of a training script": lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "the average before the rest": lambda state: {"model": {"x": torch.zeros(1)}, "model_ema": state},
    "of several processes": lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
    "of Lightning and torch.compile": lambda state: {
        "state_dict": {f"model._orig_mod.{name}": t for name, t in state.items()},
        "optimizer": [1],
    },
}


@pytest.mark.parametrize("how", WRAPPED)
def test_released_checkpoints_are_opened(tmp_path, how):
    state = dict(three_parts().state_dict())
    torch.save(WRAPPED[how](state), tmp_path / "checkpoint.pth")

    found = read_weights(str(tmp_path / "checkpoint.pth"))

    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_prefix_that_some_names_lack_stays(tmp_path):
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    save_file(state, tmp_path / "weights.safetensors")

    assert set(read_weights(str(tmp_path / "weights.safetensors"))) == set(state)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"model": {"a": 1}}, {"epoch": 3}, {"a": torch.zeros(1), "b": 2}]
)
def test_what_holds_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")

    with pytest.raises(InputError, match="state_dict_ema, model_ema, state_dict, model, module"):
        read_weights(str(tmp_path / "other.pth"))


def test_names_change_by_the_first_rule_that_fits_all_of_them():
    rules = [(r"a\.(\d)", r"first.\1"), (r"a\.(\w+)", r"second.\1")]

    assert list(renamed({"a.1": 0, "a.x": 1, "xa.1": 2, "a.1.w": 3}, rules)) == ["first.1", "second.x", "xa.1", "a.1.w"]

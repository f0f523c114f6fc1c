"""HSVLT as a method: what is sent, what it refuses, what it can be asked."""

import json

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.labels import UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local
from fedmlic.models import convnext
from fedmlic.pixel_scale import to_float
from fedmlic.shard import Shard
from fedmlic.training import captured_features

NAMES = ("a", "b", "c")
SIDE = 32


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A trunk that costs nothing."""
    monkeypatch.setitem(convnext.SIZES, "atto", ((1, 1, 2, 1), (8, 8, 16, 16)))


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def learner_of(method="hsvlt()", model="convnext()", names=NAMES):
    experiment = Experiment(method=method, model=model, batch_size=4, local_epochs=1)
    return experiment, build_learner(experiment, names, (SIDE, SIDE, 3))


def pixels(count=6):
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def train(learner, experiment, labels):
    nothing, empty = np.zeros(0, dtype=np.int64), np.zeros((0, labels.shape[1]), np.int8)
    shard = Shard(0, NAMES, Pixels(pixels(len(labels))), np.arange(len(labels)), labels, nothing, empty)
    start = learner.resident.flat.clone()
    local = Local(experiment, 1, 0, torch.device("cpu"), lambda: pytest.fail("nothing asks the global model"))
    return start, learner.method.train(learner.resident, shard, local)


@pytest.mark.parametrize("interaction", ["labels", "both"])
def test_with_a_frozen_trunk_only_the_language_parts_are_sent_and_all_of_them_move(interaction):
    experiment, learner = learner_of(f"hsvlt(interaction='{interaction}')", "convnext(trainable='head')")
    trunk = {n: p.clone() for n, p in learner.resident.network.named_parameters() if n.startswith("backbone.")}

    start, trained = train(learner, experiment, np.random.default_rng(1).integers(0, 2, (6, 3)).astype(np.int8))

    layout = learner.resident.layout
    assert trained.num_steps == 2
    assert {name.split(".")[0] for name in layout.names} == {"interactions", "projections", "readout"}
    still = [n for n, view in layout.views(learner.resident.flat) if torch.equal(view, layout.view(start, n))]
    # The last map has one place: whatever it is asked, it is all that can be gathered.
    assert [name for name in still if not name.startswith("interactions.3.0.attention.")] == []
    assert all(torch.equal(p, trunk[n]) for n, p in learner.resident.network.named_parameters() if n in trunk)


def test_a_client_without_annotations_keeps_the_model():
    experiment, learner = learner_of()
    start, trained = train(learner, experiment, np.full((6, 3), UNKNOWN, np.int8))

    assert trained.num_steps == 0
    assert torch.equal(learner.resident.flat, start)


@pytest.mark.parametrize("interaction", ["labels", "both", "none"])
def test_mods_see_the_trunks_last_map(interaction):
    """Such as moon, which contrasts it; the method goes through the trunk block by block."""
    network = learner_of(f"hsvlt(interaction='{interaction}')")[1].resident.network
    given = to_float(pixels())

    with captured_features(network, wanted=True) as captured, torch.no_grad():
        expected = network.backbone(given).mean(dim=(2, 3))
        captured.begin(given)
        network(given)
        images, found = captured.step(network, given, torch.zeros(0))[1::2]

    assert images is given
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ablations():
    off = learner_of("hsvlt(interaction='none')")[1].resident.network
    shuffled = learner_of("hsvlt(text=\"shuffled(of='random_orthogonal()')\")")[1].resident.network
    random = learner_of()[1].resident.network
    last = learner_of("hsvlt(scales='last')")[1].resident.network

    assert {name.split(".")[0] for name, _ in off.named_parameters()} == {"backbone", "readout"}
    assert off.readout.weight.shape == random.readout.weight.shape == (3, 48)
    assert last.readout.weight.shape == (3, 16)
    rows = [tuple(row) for row in random.label_tokens.tolist()]
    assert sorted(tuple(row) for row in shuffled.label_tokens.tolist()) == sorted(rows)
    assert not torch.equal(shuffled.label_tokens, random.label_tokens)


def test_text_width_is_the_last_stages_or_as_given():
    assert learner_of()[1].resident.network.label_tokens.shape == (3, 16)
    assert learner_of("hsvlt(text_width=40)")[1].resident.network.label_tokens.shape == (3, 40)


def test_what_it_refuses():
    with pytest.raises(InputError, match=r"to give hsvlt its stages, got SmallCnn\. Choose convnext"):
        learner_of(model="small_cnn()")
    with pytest.raises(InputError, match=r"readout to be 'row' with interaction='none'"):
        spec.build("method", "hsvlt(interaction='none', readout='shared')")
    with pytest.raises(InputError, match="heads to divide"):
        learner_of("hsvlt(heads=3)")


def test_names_are_asked_for_after_training(tmp_path):
    vectors = {name: np.random.default_rng(n).normal(size=16).tolist() for n, name in enumerate([*NAMES, "d", "e"])}
    (tmp_path / "vectors.json").write_text(json.dumps(vectors))
    text = f"text=\"file(path='{tmp_path / 'vectors.json'}')\""
    _, learner = learner_of(f"hsvlt({text}, readout='shared')")
    network, given = learner.resident.network.eval(), to_float(pixels())

    with torch.no_grad():
        own = learner.method.predict(network, given)
        found = learner.method.ask(network, learner.task, ("e", "b", "d"))(given)
        alone = learner.method.ask(network, learner.task, ("d",))(given)
        logits = network.beside(given, torch.tensor([vectors["e"]], dtype=torch.float32))

    assert found.shape == (6, 3)
    assert torch.equal(found[:, 1], own[:, 1])
    torch.testing.assert_close(found[:, 2:], alone)
    torch.testing.assert_close(found[:, :1], torch.sigmoid(logits))
    _, rows = learner_of(f"hsvlt({text})")
    with pytest.raises(InputError, match="readout='shared'"):
        rows.method.ask(rows.resident.network, rows.task, ("e",))


def test_equal_vectors_are_refused_where_nothing_else_tells_labels_apart(tmp_path):
    (tmp_path / "vectors.json").write_text(json.dumps({"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 0.0]}))
    with pytest.raises(InputError, match="a = c"):
        learner_of(f"hsvlt(text=\"file(path='{tmp_path / 'vectors.json'}')\", readout='shared')")

"""Feature maps of frozen backbones: the same results as without them, never stale, never half-used."""

import json
import os

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime
from fedmlic.features import (
    BATCH,
    MAPS,
    FeatureMaps,
    Passed,
    _identity,
    features_key,
    features_of,
    load_features,
    obstacle,
    obstacle_before_data,
    tensors_sha256,
)
from fedmlic.learner import build_learner, build_network
from fedmlic.method import Task
from fedmlic.record import open_run
from fedmlic.stores import DamagedError
from fedmlic.training import held_images
from strategies.server import rounds
from strategies.server.check import check_experiment

MODEL = "frozen_nets.frozen()"
NETS = '''
"""Backbones of random weights that do not train."""

from torch import nn

from fedmlic.model import Backbone, Model


class _Net(Backbone):
    num_features = 8
    bn_policy = "none"

    def __init__(self, channels, layers, trained):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 4, stride=4), *layers, nn.ReLU())
        if not trained:
            self.requires_grad_(requires_grad=False)

    def forward(self, images):
        return self.layers(images)


class _Mixed(nn.Module):
    """An image's map depends on the whole batch."""

    def forward(self, features):
        return features - features.mean(dim=0)


LAYERS = {
    "none": lambda: [],
    "group": lambda: [nn.GroupNorm(2, 8)],
    "dropout": lambda: [nn.Dropout(0.5)],
    "batch": lambda: [nn.BatchNorm2d(8)],
    "mixed": lambda: [_Mixed()],
}


def frozen(*, layer: str = "none", trained: bool = False) -> Model:
    return Model(lambda channels: _Net(channels, LAYERS[layer](), trained))
'''
DATASET = "multidigits(num_train=240, num_val=30, num_test=60, image_size=24, num_owners=12)"


@pytest.fixture(autouse=True)
def nets(plug):
    plug("frozen_nets", NETS)


@pytest.fixture(scope="module")
def corpus():
    return open_corpus(spec.build("dataset", DATASET))


def opened(corpus, home, progress=None, **settings):
    """The maps of an experiment, and its whole network."""
    experiment = Experiment(**{"model": MODEL, "method": "bce()", **settings})
    task = Task(corpus.label_names, corpus.image_shape, spec.build("model", experiment.model), experiment.seed)
    method, network = build_network(experiment, task)
    return features_of(experiment, corpus, "cpu", home, progress)(method, network), network


def plain_map(network, image):
    """One image through the backbone, written out: (byte - 127.5) / 63.75, channels first."""
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        return network.backbone.eval()((pixels - 127.5) / 63.75)[0].numpy()


def test_a_map_is_what_the_backbone_makes_of_its_image(corpus, tmp_path):
    maps, network = opened(corpus, tmp_path)

    rows = np.array([7, 300, 0, 7, corpus.num_images - 1])
    taken = maps.take(rows)

    expected = np.stack([plain_map(network, image) for image in corpus.images.take(rows)])
    assert taken.dtype == np.float32
    assert maps.shape == (corpus.num_images, *expected.shape[1:])
    np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-6)
    assert not isinstance(taken, np.memmap)


def test_maps_are_computed_once_and_shared_by_methods_and_runs(corpus, tmp_path):
    told = []
    first, _ = opened(corpus, tmp_path, lambda done, total: told.append((done, total)))
    assert told[-1] == (corpus.num_images, corpus.num_images)
    told.clear()

    again, _ = opened(corpus, tmp_path, lambda *_: told.append(1), method="asl()", learning_rate=0.1)

    assert not told
    assert again.folder == first.folder
    assert [path.name for path in (tmp_path / "features").iterdir() if path.is_dir()] == [first.key]


def test_other_weights_models_and_images_are_other_maps(corpus, tmp_path):
    other = open_corpus(spec.build("dataset", DATASET.replace("240", "241")))
    keys = [
        opened(corpus, tmp_path)[0].key,
        opened(corpus, tmp_path, seed=1)[0].key,
        opened(corpus, tmp_path, model="frozen_nets.frozen(layer='group')")[0].key,
        opened(other, tmp_path)[0].key,
    ]

    assert len({*keys}) == len(keys)


def test_edited_code_of_the_model_computes_other_maps(corpus, tmp_path, plug):
    before = opened(corpus, tmp_path)[0].key
    import sys

    del sys.modules["frozen_nets"]
    plug("frozen_nets", NETS.replace("nn.ReLU()", "nn.LeakyReLU()"))

    assert opened(corpus, tmp_path)[0].key != before


def test_what_a_method_makes_of_the_backbone_counts_even_where_its_tensors_are_the_same(corpus, tmp_path):
    experiment = Experiment(model=MODEL, method="bce()")
    plain = opened(corpus, tmp_path)[1].backbone

    class Twice(type(plain)):
        def forward(self, images):
            return 2 * super().forward(images)

    before = features_key(_identity(experiment, corpus, plain, "cpu"))
    plain.__class__ = Twice

    assert features_key(_identity(experiment, corpus, plain, "cpu")) != before


def test_versions_of_packages_that_a_model_is_made_of_count(corpus):
    torchvision = pytest.importorskip("torchvision")
    network = opened(corpus, None, model="resnet(depth=18, trainable='head')", features="computed")[1]
    experiment = Experiment(model="resnet(depth=18, trainable='head')", method="bce()")

    found = _identity(experiment, corpus, network.backbone, "cpu")["versions"]

    assert found["torchvision"].partition("+")[0] == torchvision.__version__.partition("+")[0]
    assert all(found.values())


def test_every_tensor_counts_saved_or_not():
    module = torch.nn.BatchNorm2d(3)
    module.register_buffer("scale", torch.ones(3), persistent=False)
    seen = {tensors_sha256(module)}
    for name in ("weight", "running_mean", "scale", "num_batches_tracked"):
        getattr(module, name).data.add_(1)
        seen.add(tensors_sha256(module))

    assert len(seen) == 5


def test_an_interrupted_build_goes_on_and_a_damaged_part_of_it_is_computed_again(corpus, tmp_path):
    whole = opened(corpus, tmp_path / "whole")[0]

    def broken(done, _total):
        if done >= 3 * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(corpus, tmp_path / "other", broken)
    part = next((tmp_path / "other" / "features").glob(".*.tmp"))
    assert not (part / "manifest.json").exists()
    with (part / MAPS).open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff\xff")
    told = []
    found = opened(corpus, tmp_path / "other", lambda done, _: told.append(done))[0]

    assert not part.exists()
    assert (found.folder / MAPS).read_bytes() == (whole.folder / MAPS).read_bytes()
    assert found.manifest["report"]["computed"] == corpus.num_images - 3 * BATCH + 1
    assert found.manifest["files"] == whole.manifest["files"]


def test_the_number_of_threads_does_not_show(corpus, tmp_path):
    before = torch.get_num_threads()
    first = opened(corpus, tmp_path / "one")[0]
    torch.set_num_threads(2)
    try:
        second = opened(corpus, tmp_path / "two")[0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

    assert first.manifest["files"] == second.manifest["files"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "frozen_nets.frozen(trained=True)"}, "2 tensors of model"),
        ({"model": "frozen_nets.frozen(layer='batch')"}, "BatchNorm layers.1"),
        ({"model": "frozen_nets.frozen(layer='dropout')"}, "random numbers"),
        ({"model": "frozen_nets.frozen(layer='mixed')"}, "other images of its batch"),
        ({"augmentation": "flip"}, "augmentation=flip"),
    ],
)
def test_where_maps_cannot_be_used_they_are_not_and_who_asks_is_told(corpus, tmp_path, settings, reason):
    assert opened(corpus, tmp_path, **settings)[0] is None
    assert opened(corpus, tmp_path, **settings, features="computed")[0] is None

    with pytest.raises(InputError, match=reason):
        opened(corpus, tmp_path, **settings, features="cached")

    assert not list(tmp_path.glob("features/*"))


def test_a_trial_leaves_a_backbone_as_it_was(corpus, tmp_path):
    state = torch.get_rng_state()
    _, network = opened(corpus, tmp_path, model="frozen_nets.frozen(layer='dropout')")

    assert network.backbone.training
    assert torch.equal(state, torch.get_rng_state())


def test_damage_is_reported(corpus, tmp_path):
    maps = opened(corpus, tmp_path)[0]
    with (maps.folder / MAPS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(DamagedError, match=f"row {corpus.num_images - 1}"):
        load_features(maps.folder).take(np.array([corpus.num_images - 1]))

    path = maps.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "shape": [1, 2, 3, 4]}))
    with pytest.raises(DamagedError, match=r"manifest\.json was changed"):
        opened(corpus, tmp_path)


def test_what_stands_for_the_backbone_refuses_pixels():
    with pytest.raises(InputError, match="needs_pixels"):
        Passed(8)(torch.zeros(2, 3, 24, 24))


TRAINED = "frozen_nets.frozen(trained=True)"
PROMPTS = "hp_dval(weights='random', schedule='prompts', counts='client', context_length=2)"


@pytest.mark.parametrize(
    ("method", "model"), [("bce()", MODEL), ("fedlgt(layers=1, dropout=0.1)", MODEL), (PROMPTS, TRAINED)]
)
def test_a_run_gives_the_same_with_and_without_maps(play, tmp_path, method, model):
    common = {"model": model, "method": method, "num_rounds": 3}

    with_maps = play(tmp_path / "cached", **common, features="cached")
    without = play(tmp_path / "computed", **common, features="computed")

    first, second = (open_run(tmp_path / name).load_checkpoint(3)[0] for name in ("cached", "computed"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=1e-5)
    assert with_maps["num_values"] == without["num_values"]
    for name in ("server/mAP", "server/val/mAP", "client/mAP"):
        assert with_maps["metrics"][name] == pytest.approx(without["metrics"][name], abs=1e-5)
    noted = json.loads((tmp_path / "cached" / "features.json").read_text())
    assert noted["identity"]["model"] == model
    assert not (tmp_path / "computed" / "features.json").exists()


def test_prediction_takes_pixels_and_the_whole_network(play, tmp_path, corpus):
    from sim.predict import load_predictor
    from strategies.server.server import build_server

    play(tmp_path / "run", model=MODEL, num_rounds=1)
    folder = open_run(tmp_path / "run")
    server = build_server(*folder.settings())
    assert isinstance(server.learner.stored(server.corpus), FeatureMaps)
    layout, tensors = server.learner.resident.layout, folder.load_checkpoint(1)[0]
    server.learner.resident.load(layout.pack({name: tensors[f"model/{name}"] for name in layout.names}))

    rows = np.arange(5)
    expected = server.learner.predict(server.learner.stored(server.corpus), rows)

    found = load_predictor(tmp_path / "run").scores(corpus.images.take(rows))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_training_reads_one_batch_at_a_time(play, tmp_path, monkeypatch):
    taken = []
    original = FeatureMaps.take

    def counted(self, rows):
        taken.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(FeatureMaps, "take", counted)
    play(tmp_path / "run", model=MODEL, num_rounds=1, batch_size=8, holdout_fraction=0, evaluate_clients_every=0)

    assert taken.count(8) > 10
    assert {*taken} - {8} <= {30, 60}  # the server's splits, in batches of up to 256


def test_clients_trained_at_once_take_maps_too(play, tmp_path):
    one = play(tmp_path / "one", model=MODEL, num_rounds=2, features="cached")
    many = play(tmp_path / "many", model=MODEL, num_rounds=2, features="cached", vectorize=3)

    assert many["metrics"]["server/mAP"] == pytest.approx(one["metrics"]["server/mAP"], abs=1e-4)


def test_images_of_several_clients_come_in_the_order_asked(corpus, tmp_path):
    class Held:
        def __init__(self, rows):
            self.rows, self.num_images, self.images = rows, len(rows), maps

    maps = opened(corpus, tmp_path)[0]
    shards = [Held(np.array([5, 9, 1])), Held(np.array([40])), Held(np.array([3, 7]))]
    numbers = np.array([5, 0, 3, 2, 4, 0])

    found = held_images(shards, torch.device("cpu"))(numbers).numpy()

    assert np.array_equal(found, maps.take(np.array([7, 5, 40, 1, 3, 5])))


def test_norms_that_stay_on_the_client_are_those_of_the_head(corpus, tmp_path):
    experiment = Experiment(
        model="frozen_nets.frozen(layer='group')", method="fedlgt(layers=1, heads=2)", mods="fedbn(norms='all')"
    )
    features = features_of(experiment, corpus, "cpu", tmp_path)
    learned = build_learner(experiment, corpus.label_names, corpus.image_shape, features=features)

    assert learned.features is not None
    names = learned.resident.private_names
    assert names
    assert not [name for name in names if name.startswith("backbone.")]
    assert not list(learned.build_network(experiment).backbone.parameters())


def test_a_killed_run_goes_on_with_its_maps(play, tmp_path, monkeypatch):
    from sim import run as engine

    expected = play(tmp_path / "whole", model=MODEL)["weights_sha256"]
    original, calls = rounds.sample_cohort, []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "sample_cohort", broken)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path / "run", model=MODEL)

    assert engine.resume(tmp_path / "run")["weights_sha256"] == expected
    told = [event["text"] for event in open_run(tmp_path / "run").events() if event["event"] == "warning"]
    assert not [text for text in told if "feature maps" in text]


def test_a_run_that_goes_on_with_other_maps_says_so(play, tmp_path):
    from strategies.server.server import build_server, note_features

    play(tmp_path / "run", model=MODEL, num_rounds=1)
    folder = open_run(tmp_path / "run")
    server = build_server(*folder.settings())
    assert note_features(folder, server, resumed=True) == []
    (folder.path / "features.json").unlink()

    (text,) = note_features(folder, server, resumed=True)

    assert "started with feature maps computed in every step" in text
    assert server.learner.features.key in text


FREEZING = (
    "promptfl(weights='random')",
    "dualcoop(weights='random')",
    "fedtpg(weights='random', heads=1)",
    "hp_dval(weights='random', schedule='prompts')",
    "ridge()",
)


@pytest.mark.parametrize("model", [TRAINED, "frozen_nets.frozen(layer='batch', trained=True)"])
@pytest.mark.parametrize("method", FREEZING)
def test_a_method_that_freezes_its_backbone_has_maps_of_any_model(method, model):
    experiment = Experiment(method=method, model=model, features="cached")
    made, network = build_network(experiment, Task(("cat", "dog"), (24, 24, 3), spec.build("model", model), 0))

    assert obstacle(experiment, made, network) == ""
    assert obstacle_before_data(experiment, made) == ""
    settings = {"allow_statistics": True, "optimizer": "sgd", "schedule": "constant"}
    check_experiment(experiment.model_copy(update=settings), Runtime())


@pytest.mark.parametrize("schedule", ["two_stages", "alignment", "joint"])
def test_a_method_that_trains_its_backbone_is_refused_maps_before_data(schedule):
    method = f"hp_dval(weights='random', schedule={schedule!r}, distill=0.0)"
    experiment = Experiment(method=method, model=TRAINED, features="cached")
    made, network = build_network(experiment, Task(("cat", "dog"), (24, 24, 3), spec.build("model", TRAINED), 0))

    assert obstacle(experiment, made, network).startswith("2 tensors of model")
    assert schedule == "two_stages" or obstacle_before_data(experiment, made).startswith("2 tensors of model")


@pytest.mark.parametrize("changes", [{"augmentation": "flip"}, {"model": "frozen_nets.frozen(trained=True)"}])
def test_asking_for_maps_that_cannot_be_used_is_refused_before_anything_is_read(play, tmp_path, monkeypatch, changes):
    from strategies.server import server

    monkeypatch.setattr(server, "open_corpus", lambda *_, **__: pytest.fail("the images were read"))

    with pytest.raises(InputError, match="features=cached"):
        play(tmp_path / "run", **{"model": MODEL, "features": "cached", **changes})

    assert not (tmp_path / "run").exists()


def test_a_device_computes_the_maps_of_its_own_images_and_keeps_them_in_its_home(tiny, tmp_path):
    from clients.source import open_node

    experiment, runtime = tiny(model=MODEL, num_clients=1, cohort_size=1)
    config = {**experiment.model_dump(), **runtime.model_dump()}
    node = {"data": DATASET, "client": 0, "home": str(tmp_path), "device": "cpu", "allow-plugins": "frozen_nets.*"}

    host = open_node(config, node).host

    assert host._learner.features.folder.parent == tmp_path / "features"
    assert host.info().clients.tolist() == [0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of Ray
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_every_engine_gives_the_same_weights(play, tmp_path, engine):
    expected = play(tmp_path / "alone", model=MODEL, num_rounds=2)["weights_sha256"]

    found = play(tmp_path / engine, model=MODEL, num_rounds=2, engine=engine, workers=2)

    assert found["weights_sha256"] == expected

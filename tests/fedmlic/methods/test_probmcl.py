"""ProbMCL: its losses by hand, what trains in which round, and the cases at the edges."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from typer.testing import CliRunner

from clients.memory import FolderMemory
from fedmlic import spec
from fedmlic.contrast import contrastive_loss, pairs_of
from fedmlic.corpus import open_corpus
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.method import Local, stretch_of
from fedmlic.methods.probmcl import Contrast, MixtureEncoder, MixtureMaps, density_loss
from fedmlic.mixtures import Mixtures, log_similarity, spread
from fedmlic.pixel_scale import to_float
from fedmlic.record import open_run
from fedmlic.shard import Shard
from fedmlic.views import strong_view, weak_view
from sim.command import app
from sim.predict import load_predictor, predict
from strategies.server.check import check_experiment
from strategies.server.server import MODEL

CPU = torch.device("cpu")
SIDE = 16


class Pixels:
    """Images in memory, as a shard reads them."""

    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def shard_of(labels, seed=0):
    """Random images with these labels."""
    labels = np.asarray(labels, dtype=np.int8)
    names = tuple(f"label{number}" for number in range(labels.shape[1]))
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), SIDE, SIDE, 1), dtype=np.uint8)
    nothing, rows = np.zeros(0, dtype=np.int64), np.arange(len(labels))
    return Shard(3, names, Pixels(pixels), rows, labels, nothing, np.zeros((0, len(names)), np.int8))


def experiment(options="", **settings):
    small = "dimensions=8, hidden=0" + (", " if options else "") + options
    values = {"model": "small_cnn(width=8)", "batch_size": 8, "local_epochs": 1, "learning_rate": 1e-2, **settings}
    return Experiment(method=f"probmcl({small})", **values)


def learner_of(settings, shard):
    return build_learner(settings, shard.label_names, (SIDE, SIDE, 1))


def turn(settings, learner, shard, round_number, memory=None):
    """A client's turn in a round, as a host plays it; what was trained, and the tensors before."""
    stretch = stretch_of(learner.method, round_number)
    resident = learner.resident
    resident.load(resident.flat.clone())
    resident.train_only(None if stretch.phase.tensors is None else stretch.phase.tensors(resident.network))
    before = copy.deepcopy(resident.network.state_dict())
    local = Local(settings, round_number, 3, CPU, lambda: None, memory={} if memory is None else memory)
    return stretch.phase.train(resident, shard, local), before


def changed_tensors(learner, before):
    after = learner.resident.network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


LABELS = np.random.default_rng(4).integers(0, 2, (12, 4)).astype(np.int8)


@pytest.mark.parametrize("contrast", ["probabilistic", "supervised"])
def test_exactly_the_tensors_of_the_stage_train(contrast):
    settings = experiment(f"encoder_rounds=2, contrast='{contrast}'", model="small_cnn(width=8, norm='pooled')")
    shard = shard_of(LABELS)
    learner = learner_of(settings, shard)
    floats = {name for name, tensor in learner.resident.network.state_dict().items() if tensor.is_floating_point()}
    head = {"head.weight", "head.bias"}

    first, before = turn(settings, learner, shard, 2)
    assert first.num_steps == 2
    assert changed_tensors(learner, before) & floats == floats - head
    second, before = turn(settings, learner, shard, 3)
    assert second.num_steps == 2
    assert changed_tensors(learner, before) == head


def test_both_stages_at_once_train_everything():
    settings = experiment("stages='joint'")
    shard = shard_of(LABELS)
    learner = learner_of(settings, shard)

    trained, before = turn(settings, learner, shard, 1)

    assert changed_tensors(learner, before) == set(before)
    assert trained.metrics["anchors"] + trained.metrics["skipped"] == 2 * 12


def test_the_ablation_has_the_same_encoder_and_no_mixture():
    networks = [
        learner_of(experiment(f"contrast='{kind}'"), shard_of(LABELS)).resident.network
        for kind in ("probabilistic", "supervised")
    ]
    ours, theirs = (dict(network.named_parameters()) for network in networks)

    assert {name for name in ours if name not in theirs} == {name for name in ours if name.startswith("density.")}
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def network_of(num_labels=3, dimensions=4, *, mixtures=True, diagonal=False):
    """A small encoder of its own."""
    torch.manual_seed(1)
    backbone = spec.build("model", "small_cnn(width=8)").build(1)
    network = MixtureEncoder(backbone, num_labels, dimensions=dimensions, hidden=0)
    if mixtures:
        network.density = MixtureMaps(num_labels, dimensions, diagonal=diagonal, least_variance=0.25)
    return network.eval()


CONTRAST = Contrast(
    mixtures=True,
    index="jaccard",
    threshold=0.5,
    temperature=0.2,
    balance=0.3,
    nll="positive",
    density_trains="head",
    matched=False,
    scale="log",
    queue=0,
    views="strong",
    absent=False,
)


def batch_of(labels, contrast, network, kept=()):
    labels = torch.tensor(labels, dtype=torch.int8)
    images = to_float(shard_of(labels.repeat(2, 1).numpy()).images.pixels)
    pairs = pairs_of(labels.repeat(2, 1), None, contrast.index, contrast.threshold)
    return contrast.loss(network, images[: len(labels)], labels, images, *pairs, *kept), images, labels, pairs


@pytest.mark.parametrize("changes", [{}, {"matched": True}, {"scale": "exp"}])
def test_the_loss_is_the_sum_of_its_parts(changes):
    contrast, network = replace(CONTRAST, **changes), network_of()
    (value, logits, *keys), images, labels, pairs = batch_of([[1, 0, 1], [1, -1, 0], [0, 0, 1]], contrast, network)

    with torch.no_grad():
        found = network(images, True)
        logs = log_similarity(found.mixtures, found.mixtures, matched=contrast.matched)
        similarity = logs / 4 if contrast.scale == "log" else logs.exp()
        expected = density_loss(found.points, found.mixtures, labels.repeat(2, 1), "positive")
        expected += 0.3 * contrastive_loss(similarity / 0.2, *pairs)

    torch.testing.assert_close(value.detach(), expected)
    assert torch.equal(logits, found.logits)
    assert [len(key) for key in keys] == [3] * 4


@pytest.mark.parametrize("views", ["strong", "weak", "randaugment"])
def test_views_are_those_that_are_asked_for(views):
    local = Local(experiment(), 1, 0, torch.device("cpu"), lambda: None, torch.zeros(0))
    images = to_float(shard_of(np.ones((5, 3), np.int8)).images.pixels)

    both, *_ = (
        replace(CONTRAST, views=views).inputs(local).of(images, torch.ones(5, 3, dtype=torch.int8), torch.arange(5))
    )

    rng = local.torch_rng("views")
    change = {"strong": strong_view, "weak": weak_view, "randaugment": partial(strong_view, randaugment=True)}[views]
    assert torch.equal(both, torch.cat([change(images, rng), change(images, rng)]))


def test_the_ablation_is_supervised_contrast_of_cosines():
    contrast, network = replace(CONTRAST, mixtures=False), network_of(mixtures=False)
    (value, _, *keys), images, _, pairs = batch_of([[1, 0, 1], [1, -1, 0], [0, 0, 1]], contrast, network)

    points = network(images, True).points.detach()
    cosines = cosine_similarity(points[:, None], points[None], dim=2)

    torch.testing.assert_close(value.detach(), contrastive_loss(cosines / 0.2, *pairs))
    assert len(keys) == 1


@pytest.mark.parametrize("nll", ["positive", "posterior", "all"])
def test_the_density_loss_is_that_of_a_plain_loop(nll):
    rng = torch.Generator().manual_seed(0)
    mixtures = Mixtures(
        torch.randn(4, 3, generator=rng).log_softmax(1), torch.randn(4, 3, 2, generator=rng), torch.ones(4, 3, 1) / 2
    )
    points = torch.randn(4, 2, generator=rng)
    labels = torch.tensor([[1, 0, 1], [0, 1, -1], [0, 0, 0], [-1, -1, -1]], dtype=torch.int8)
    terms = []
    for i, row in enumerate(labels.tolist()):
        parts = [
            math.exp(mixtures.log_weights[i, k])
            * math.exp(-float((points[i] - mixtures.means[i, k]).square().sum()))
            / math.pi
            for k in range(3)
        ]
        present = sum(part for part, state in zip(parts, row, strict=True) if state == PRESENT)
        known = sum(part for part, state in zip(parts, row, strict=True) if state >= ABSENT)
        if nll == "all":
            terms.append(-math.log(sum(parts)))
        elif present:
            terms.append(-math.log(present / (known if nll == "posterior" else 1)))

    assert float(density_loss(points, mixtures, labels, nll)) == pytest.approx(sum(terms) / len(terms) / 2, rel=1e-5)


@pytest.mark.parametrize("trains", ["head", "encoder"])
def test_the_density_loss_trains_the_encoder_only_where_that_is_asked_for(trains):
    contrast, network = replace(CONTRAST, balance=0.0, density_trains=trains), network_of()
    (value, *_), images, labels, _ = batch_of([[1, 0, 1], [1, -1, 0], [0, 0, 1]], contrast, network)
    value.backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in network.named_parameters()}
    encoder = [norm for name, norm in norms.items() if name.startswith(("backbone.", "projection."))]

    assert all(norm > 0 for name, norm in norms.items() if name.startswith("density."))
    assert (max(encoder) == 0) is (trains == "head")
    with torch.no_grad():
        found = network(images, True)
        expected = density_loss(found.points, found.mixtures, labels.repeat(2, 1), "positive")
    torch.testing.assert_close(value.detach(), expected)


def test_points_keep_their_spread_unless_the_density_loss_trains_the_encoder():
    spreads = {}
    for trains in ("head", "encoder"):
        settings = experiment(f"density_trains='{trains}'", local_epochs=20)
        shard = shard_of(LABELS)
        learner = learner_of(settings, shard)
        turn(settings, learner, shard, 1)
        network = learner.resident.network.eval()
        with torch.no_grad():
            spreads[trains] = float(network(to_float(shard.images.pixels), True).points.std(dim=0).mean())

    assert spreads["encoder"] < spreads["head"] / 1.5


def test_variances_stay_above_their_floor_and_weights_sum_to_one():
    network = network_of(diagonal=True)
    with torch.no_grad():
        mixtures = network.density(1e3 * torch.randn(5, 4))

    assert mixtures.variances.shape == mixtures.means.shape == (5, 3, 4)
    assert float(mixtures.variances.min()) == 0.25
    torch.testing.assert_close(mixtures.log_weights.exp().sum(1), torch.ones(5))


EDGES = {
    "one image": [[1, 0, 1]],
    "one image, nothing known": [[-1, -1, -1]],
    "nothing known": [[-1, -1, -1]] * 4,
    "nothing present": [[0, 0, -1]] * 4,
    "nothing in common": [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]],
    "one label": [[1], [0], [-1]],
}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("labels", EDGES.values(), ids=EDGES)
def test_edges_train_to_finite_numbers(labels, batch_size):
    shard = shard_of(labels)
    for options in (
        "encoder_rounds=1",
        "stages='joint'",
        "encoder_rounds=1, contrast='supervised'",
        "encoder_rounds=1, nll='all'",
    ):
        settings = experiment(options, batch_size=batch_size)
        learner = learner_of(settings, shard)
        for round_number in (1, 2):
            trained, before = turn(settings, learner, shard, round_number)

            assert learner.resident.flat.isfinite().all()
            assert math.isfinite(trained.loss)
            if not (shard.labels >= ABSENT).any() and (round_number == 2 or "'all'" not in options):
                assert trained.num_steps == 0
                assert not changed_tensors(learner, before)


def test_an_image_by_itself_is_drawn_to_nothing_but_made_likely():
    settings = experiment()
    shard = shard_of([[1, 0, 1]])
    learner = learner_of(settings, shard)

    trained, _ = turn(settings, learner, shard, 1)

    assert trained.metrics == {"anchors": 2.0, "skipped": 0.0}
    assert trained.loss != 0


def test_images_without_a_known_present_label_are_skipped():
    settings = experiment(batch_size=4)
    shard = shard_of([[1, 0], [1, 1], [0, 0], [-1, 0]])

    trained, _ = turn(settings, learner_of(settings, shard), shard, 1)

    assert trained.metrics == {"anchors": 4.0, "skipped": 4.0}


def test_unknown_as_absent_gives_the_turns_of_labels_that_say_so():
    hidden = np.where(np.random.default_rng(1).random(LABELS.shape) < 0.5, UNKNOWN, LABELS).astype(np.int8)
    settings = experiment("encoder_rounds=1, unknown='absent'")
    flats = []
    for labels in (hidden, np.where(hidden == UNKNOWN, ABSENT, hidden)):
        shard = shard_of(labels)
        learner = learner_of(settings, shard)
        for round_number in (1, 2):
            turn(settings, learner, shard, round_number)
        flats.append(learner.resident.flat.clone())

    assert torch.equal(*flats)
    assert learner.method.guesses == "absent"


@pytest.mark.parametrize("components", ["all", "matched"])
def test_sixteen_hundred_labels(components):
    labels = np.full((1, 1628), UNKNOWN, dtype=np.int8)
    labels[:, :900] = ABSENT
    labels[:, 1627] = PRESENT
    settings = experiment(f"components='{components}'")
    shard = shard_of(labels)
    learner = learner_of(settings, shard)

    trained, before = turn(settings, learner, shard, 1)

    assert trained.num_steps == 1
    assert math.isfinite(trained.loss)
    assert {name for name in before if name.startswith("density.")} <= changed_tensors(learner, before)
    assert set(learner.method.label_rows(learner.resident.network)) == {
        name for name in before if name.startswith(("density.", "head."))
    }


def test_a_queue_gives_further_keys_and_is_found_again():
    settings = experiment("queue=5", batch_size=2)
    shard = shard_of(LABELS)
    learner = learner_of(settings, shard)
    memory = {}

    turn(settings, learner, shard, 1, memory)

    assert learner.method.remembers
    assert memory["queue/labels"].shape == (5, 4)
    assert {len(tensor) for tensor in memory.values()} == {5}
    assert not any(tensor.requires_grad for tensor in memory.values())
    kept = {name: tensor.clone() for name, tensor in memory.items()}
    start = learner.resident.flat.clone()
    flats = []
    for given in (dict(kept), dict(kept), {}):
        learner.resident.load(start)
        turn(settings, learner, shard, 2, given)
        flats.append(learner.resident.flat.clone())
    assert torch.equal(flats[0], flats[1])
    assert not torch.equal(flats[0], flats[2])


def test_a_run_without_a_second_stage_is_refused():
    with pytest.raises(InputError, match="rounds after encoder_rounds=8, and num-rounds is 8"):
        check_experiment(experiment(num_rounds=8), Runtime())

    check_experiment(experiment(num_rounds=9), Runtime())
    check_experiment(experiment("stages='joint'", num_rounds=1), Runtime())


@pytest.fixture(scope="module")
def folder(play, tmp_path_factory):
    path = tmp_path_factory.mktemp("probmcl") / "run"
    method = "probmcl(encoder_rounds=2, dimensions=8, hidden=0, queue=6)"
    play(path, method=method, num_rounds=4, keep_checkpoints=9)
    return path


def test_in_a_run_the_encoder_stays_bit_for_bit_and_only_the_head_is_sent(folder):
    record = open_run(folder)
    models = []
    for number in (1, 2, 3, 4):
        tensors, _ = record.load_checkpoint(number)
        models.append({name.removeprefix(MODEL): t for name, t in tensors.items() if name.startswith(MODEL)})
    names = set(models[0])
    head = {"head.weight", "head.bias"}

    def same(first, second):
        return {name for name in names if torch.equal(models[first][name], models[second][name])}

    assert same(0, 1) == head
    assert same(1, 2) == names - head
    assert same(2, 3) == names - head
    sent = {event["round"]: event["bytes-up"] for event in record.events() if event["event"] == "round"}
    assert sent[3] < sent[2] / 2
    assert any(name.startswith("density.") for name in names)


def test_the_queue_is_kept_by_clients_and_ends_with_the_stage(folder):
    tensors, _ = open_run(folder).load_checkpoint(4)
    memory = FolderMemory(folder / "memory")
    queues = []
    for client, _ in tensors["last-turns"].tolist():
        for version in memory.versions(client):
            kept = memory.recall(client, version)
            queues.append(bool(kept))
            assert bool(kept) == (version <= 2)

    assert any(queues)


def test_predict_tells_the_uncertainty_of_every_image(folder, finished, tmp_path):
    corpus = open_corpus(spec.build("dataset", open_run(folder).settings()[0].dataset))
    stored = corpus.images.take(np.arange(3))
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, image in zip(files, stored, strict=True):
        Image.fromarray(image).save(file)
    predictor = load_predictor(folder)
    network = predictor.learner.resident.network
    with torch.inference_mode():
        expected = spread(network(to_float(stored), True).mixtures)

    found = predict(folder, files)["images"]

    for number, entry in enumerate(found):
        assert entry["uncertainty"] == pytest.approx({n: float(v[number]) for n, v in expected.items()}, rel=1e-4)
        assert 1 <= entry["uncertainty"]["effective_components"] <= len(corpus.label_names)
    printed = CliRunner().invoke(app, ["predict", str(folder), str(files[0])]).output
    assert f"uncertainty: variance {found[0]['uncertainty']['variance']:.4g}, variance_within" in printed
    assert "uncertainty" not in predict(finished, files)["images"][0]

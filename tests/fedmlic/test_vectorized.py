"""Clients trained at once are the clients trained one after another, but for rounding."""

import pytest
import torch

from clients.host import Host
from clients.memory import FolderMemory
from clients.opening import open_federation
from fedmlic.errors import InputError
from fedmlic.learner import build_learner
from fedmlic.method import why_one_by_one
from fedmlic.models import convnext
from fedmlic.protocol import Request
from fedmlic.spec import build, entries
from fedmlic.update import Weighting, units_for
from strategies.server.server import build_server

VARIANTS = {
    "fedlgt": ["fedlgt(dropout=0.0, layers=1, known_fraction_max=0.25, band=0.2)", "fedlgt(dropout=0.0, layers=1)"],
    "ctran": ["ctran(dropout=0.0, layers=1)"],
    "query2label": ["query2label(dropout=0.0)"],
    "ml_decoder": ["ml_decoder(dropout=0.0)"],
    "pat": ["pat(mode='self')"],  # Adam makes much of rounding errors in gradients of attention that are nearly 0
    "bce": ["bce()", "bce(pool='logsumexp')", "bce(pool='max')"],
}
"""Methods whose defaults draw at random, or that have more than one way of doing it."""

MODELS = {"hsvlt()": "convnext(image_size=32)", "fednca()": "small_cnn(width=16)"}
"""For methods that need a network's inside, or a width for each label."""

EVERY = [text for name in entries("method") for text in VARIANTS.get(name, [f"{name}()"])]
METHODS = [text for text in EVERY if not why_one_by_one(build("method", text))]


@pytest.fixture(scope="module")
def hosts(tiny, tmp_path_factory):
    """A function: a host that trains ``size`` clients at once, over clients of unlike sizes."""

    def made(size, **changes):
        changes = {"partition": "dirichlet(alpha=1.0, min_images=3)", "holdout_fraction": 0.0, **changes}
        experiment, runtime = tiny(**changes)
        server = build_server(experiment, runtime)
        learner = build_learner(experiment, server.learner.task.label_names, server.learner.task.image_shape)
        federation = open_federation(experiment, runtime, server.corpus)
        memory = FolderMemory(tmp_path_factory.mktemp("memory"))
        host = Host("test", experiment, federation, learner, vectorize=size, memory=lambda _run: memory)
        return host, learner.resident.flat.clone()

    return made


def play(made, clients=(4, 0, 3, 5, 1), number=2):
    """Every client's own update, from the same slightly disturbed weights."""
    host, start = made
    layout, rng = host._learner.resident.layout, torch.Generator().manual_seed(5)
    disturbed = {name: value + 0.01 * torch.randn(value.shape, generator=rng) for name, value in layout.views(start)}
    flat = layout.pack(disturbed)
    weighting = Weighting("uniform")
    request = Request("train", number, flat, units_for(weighting, [1] * 6, 10), weighting, each=True)
    return host.play(request, list(clients)), flat


def assert_alike(together, alone, flat, tolerance=2e-5):
    assert [turn.error for turn in together.turns] == [turn.error for turn in alone.turns]
    for left, right in zip(together.turns, alone.turns, strict=True):
        assert (left.client, left.num_images, left.num_annotations) == (
            right.client,
            right.num_images,
            right.num_annotations,
        )
        assert left.num_steps == right.num_steps
        assert left.loss == pytest.approx(right.loss, rel=1e-4, abs=1e-6)
    for left, right in zip(together.updates, alone.updates, strict=True):
        assert left.clients == right.clients
        moved = (right.mean(flat) - flat).abs().max()
        assert (left.mean(flat) - right.mean(flat)).abs().max() <= tolerance + 1e-3 * moved
        assert left.metrics.keys() == right.metrics.keys()
        for name in left.metrics.keys() - {"loss"}:
            assert left.metrics[name] == right.metrics[name], name


def test_every_method_of_the_catalogue_says_whether_it_can():
    """Those in phases or with a reason of their own are trained one by one, and nothing else is."""
    reasons = {text: why_one_by_one(build("method", text)) for text in EVERY}

    assert all(reason or build("method", text).objective is not None for text, reason in reasons.items())
    assert {"bce()", "asl()", "role()"} <= {text for text, reason in reasons.items() if not reason}
    assert reasons["pml_cdcr()"] == "candidates are judged by a client's own network"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_as_one_after_another(hosts, method, monkeypatch):
    monkeypatch.setitem(convnext.SIZES, "atto", ((1, 1, 1, 1), (8, 8, 16, 16)))
    changes = {"method": method, "local_epochs": 2, "batch_size": 7}
    changes |= {"model": MODELS[method]} if method in MODELS else {}
    alone, flat = play(hosts(1, **changes))

    together, _ = play(hosts(3, **changes))  # three at once, then two
    assert_alike(together, alone, flat)


def test_the_same_for_any_number_at_once(hosts):
    alone, flat = play(hosts(1, batch_size=7))

    for size in (2, 5):
        together, _ = play(hosts(size, batch_size=7))
        assert_alike(together, alone, flat)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.02, "local_epochs": 3},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 0.05},
        {"clip_norm": 0.0, "augmentation": "flip+shift", "local_epochs": 2},
        {"augmentation": "crop+flip+cutout+randaugment", "local_epochs": 2},
        {"local_steps": 5, "batch_size": 9},
        {"optimizer": "sgd", "learning_rate": 0.1, "local_epochs": 2, "method": "pat(views=['flip', 'randaugment'])"},
        {"regime": "random_missing(known_fraction=0.02)", "method": "ctran(dropout=0.0, layers=1)"},
    ],
    ids=str,
)
def test_with_any_optimiser_augmentation_and_number_of_steps(hosts, changes):
    changes = {"batch_size": 7, **changes}
    alone, flat = play(hosts(1, **changes))
    together, _ = play(hosts(4, **changes))

    assert_alike(together, alone, flat)


def test_clients_do_not_reach_each_other_and_nothing_is_left_for_the_next(hosts):
    host = hosts(5, batch_size=7)
    first, flat = play(host)
    play(host, clients=(2, 1, 0), number=3)
    again, _ = play(host)
    fewer, _ = play(host, clients=(4, 0))

    for left, right in zip(first.updates, again.updates, strict=True):
        assert torch.equal(left.sums, right.sums)
    for left, right in zip(fewer.updates, first.updates, strict=False):
        torch.testing.assert_close(left.mean(flat), right.mean(flat), rtol=1e-4, atol=1e-5)


DIVERGES = """
import torch
from fedmlic.method import Inputs, Objective
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier, trainer


def diverges(*, client: int = -1, how: str = "nan"):
    base = classifier(mean_binary_cross_entropy)

    def inputs(local):
        if local.client == client and how == "raise":
            raise ValueError("bad day")
        factor = torch.tensor(float("nan") if local.client == client else 1.0)
        return Inputs(lambda images, labels, numbers: (factor,), dict)

    def loss(network, images, labels, factor):
        return mean_binary_cross_entropy(network(images), labels) * factor

    objective = Objective(loss, inputs)
    return base._replace(train=trainer(objective), objective=objective)
"""


@pytest.mark.parametrize(
    ("how", "error"), [("nan", "FloatingPointError: Expected a finite"), ("raise", "ValueError: bad day")]
)
def test_one_that_fails_fails_alone(hosts, plug, how, error):
    plug("diverges", DIVERGES)
    alone, flat = play(hosts(1, method="diverges.diverges()"), clients=(0, 2, 3))
    together, _ = play(hosts(4, method=f"diverges.diverges(client=1, how={how!r})"), clients=(0, 1, 2, 3))

    errors = [turn.error for turn in together.turns]
    assert [bool(text) for text in errors] == [False, True, False, False]
    assert errors[1].startswith(error)
    for left, right in zip(together.updates, alone.updates, strict=True):
        torch.testing.assert_close(left.mean(flat), right.mean(flat), rtol=1e-4, atol=1e-5)


OWN_WAY = """
from fedmlic.methods.bce import bce


def own_way():
    base = bce()
    return base._replace(train=lambda *given: base.train(*given), objective=None)
"""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "own_way.own_way()"}, "a way of its own"),
        ({"method": "ctran(dropout=0.1)"}, "dropout"),
        ({"model": "small_cnn(width=4, norm='pooled')"}, "BatchNorm statistics"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(hosts, plug, changes, reason):
    plug("own_way", OWN_WAY)

    with pytest.raises(InputError, match=rf"to allow vectorize, got .*{reason}.* Use vectorize=1"):
        hosts(2, **changes)


def test_a_run_trains_at_once_what_it_would_train_alone(play_settings):
    alone, together = play_settings(vectorize=1), play_settings(vectorize=3)

    assert alone["weights_sha256"] != together["weights_sha256"]
    assert alone["metrics"]["server/mAP"] == pytest.approx(together["metrics"]["server/mAP"], abs=0.02)


@pytest.fixture
def play_settings(tmp_path, tiny):
    from sim.run import run

    def played(**changes):
        return run(*tiny(engine="processes", workers=2, **changes), tmp_path / str(changes["vectorize"]))

    return played

"""Runs of no rounds: the first model, evaluated and recorded like any other."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from clients.opening import images_of
from fedmlic import spec
from fedmlic.labels import ABSENT, PRESENT
from fedmlic.method import Task
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.record import MODEL, open_run, read_json
from fedmlic.seeds import torch_global_stream
from sim import run as engine
from sim.comparison.read import metrics_of
from sim.outcome import scores_of
from strategies.server import server

STAGES = "probe_then_tune(probe_rounds=2)"


def plainly(experiment, corpus, split="test"):
    """Average precision per label of the network as its method builds it, image by image, without any run."""
    task = Task(tuple(corpus.label_names), corpus.image_shape, spec.build("model", experiment.model), experiment.seed)
    method = spec.build("method", experiment.method)
    with torch_global_stream(experiment.seed, "init"):
        network = method.build(task).eval()
    rows = np.arange(corpus.splits[split].start, corpus.splits[split].stop)
    scores = []
    for row in rows:
        image = torch.from_numpy(corpus.images.take(np.array([row]))).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            scores.append(method.predict(network, (image - PIXEL_MEAN) / PIXEL_STD).numpy()[0])
    labels, scores = corpus.labels.take(rows), np.array(scores)
    found = []
    for column in range(labels.shape[1]):
        known = np.isin(labels[:, column], (PRESENT, ABSENT))
        found.append(average_precision_score(labels[known, column] == PRESENT, scores[known, column]))
    return np.array(found), scores


@pytest.mark.parametrize("method", ["bce()", "fedlgt(width=16, layers=1, text='random_orthogonal()')", STAGES])
def test_it_is_what_the_freshly_built_network_says(tiny, play, tmp_path, method):
    experiment, runtime = tiny(num_rounds=0, method=method, regime="complete()")

    result = play(tmp_path / "run", num_rounds=0, method=method, regime="complete()")

    expected, scores = plainly(experiment, images_of(experiment, runtime))
    (labels,) = [e for e in open_run(tmp_path / "run").events() if e["event"] == "labels" and e["split"] == "test"]
    assert labels["round"] == 0
    assert np.allclose(labels["ap"], expected, atol=1e-6)
    assert result["metrics"]["server/mAP"] == pytest.approx(expected.mean(), abs=1e-6)
    assert np.allclose(scores_of(tmp_path / "run").scores, scores, atol=1e-5)


def test_it_is_a_run_like_others(play, tmp_path):
    result = play(tmp_path / "run", num_rounds=0)

    found = read_json(tmp_path / "run" / "result.json")
    assert (result["rounds"], result["best_round"], found["best_metrics"]) == (0, 0, {})
    assert open_run(tmp_path / "run").checkpoints() == [0]
    rounds = open_run(tmp_path / "run").tables()["rounds"]
    assert list(rounds["round"]) == [0]
    assert rounds["num-clients"][0] == rounds["bytes-up"][0] == 0
    assert metrics_of(tmp_path / "run", "best") == metrics_of(tmp_path / "run")
    assert result["metrics"]["client/new/num-clients"] == 6  # every client judges it, none has trained
    assert "client/mAP" in result["metrics"]


def test_its_weights_are_those_that_training_begins_with(play, tmp_path):
    """A round with a vanishing rate leaves the weights where they were, but for the rounding of their mean."""
    play(tmp_path / "before", num_rounds=0)
    play(tmp_path / "after", num_rounds=1, learning_rate=1e-12, optimizer="sgd")

    before, after = (open_run(tmp_path / name).load_checkpoint(n)[0] for name, n in (("before", 0), ("after", 1)))
    models = [{name: t for name, t in each.items() if name.startswith(MODEL)} for each in (before, after)]
    assert models[0].keys() == models[1].keys() != set()
    for name, tensor in models[0].items():
        assert torch.allclose(tensor, models[1][name], rtol=1e-6, atol=1e-7), name


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of Ray
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:GitWildMatchPattern:DeprecationWarning")  # of Ray, Flower
@pytest.mark.parametrize(
    "engine", ["processes", pytest.param("ray", marks=pytest.mark.slow), pytest.param("flower", marks=pytest.mark.slow)]
)
def test_engines_agree(play, tmp_path, engine):
    one, other = (play(tmp_path / name, num_rounds=0, engine=name, workers=2) for name in ("inprocess", engine))

    assert one["weights_sha256"] == other["weights_sha256"]
    assert one["metrics"] == pytest.approx(other["metrics"], nan_ok=True)


@pytest.mark.parametrize("mods", ["", "fedper()"])
def test_one_that_was_killed_goes_on_to_the_same(play, tmp_path, monkeypatch, mods):
    whole = play(tmp_path / "whole", num_rounds=0, mods=mods)

    class Killed(BaseException):
        """Stands for SIGKILL."""

    def killed(*args):
        raise Killed(args)

    monkeypatch.setattr(server, "result_of", killed)
    with pytest.raises(Killed):
        play(tmp_path / "killed", num_rounds=0, mods=mods)
    monkeypatch.undo()

    again = engine.resume(tmp_path / "killed")

    assert again["metrics"] == pytest.approx(whole["metrics"], nan_ok=True)
    kinds = [event["event"] for event in open_run(tmp_path / "killed").events()]
    assert kinds.count("round") == 1
    assert kinds.count("clients-evaluated") == 1


def test_a_model_of_clients_own_is_judged_by_clients_alone(play, tmp_path):
    result = play(tmp_path / "run", num_rounds=0, mods="fedper()")

    assert not any(name.startswith("server/") for name in result["metrics"])
    assert 0 < result["metrics"]["client/mAP"] < 1

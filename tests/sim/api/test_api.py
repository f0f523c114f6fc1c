"""Runs and studies from Python: what is read is what was recorded, and what clients hold is what training sees."""

import doctest
import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from scipy import stats
from torch.utils.data import DataLoader

from clients.opening import images_of, open_federation
from fedmlic.errors import InputError
from fedmlic.experiment import split_settings
from fedmlic.labels import UNKNOWN, known
from fedmlic.pixel_scale import to_float
from sim import api
from sim.api.playing import FailedRunsWarning, OtherCodeWarning
from sim.console import Display

MODULES = ("sim.api", "sim.api.federation", "sim.api.settings")


@pytest.fixture(scope="module")
def run(finished):
    return api.load(finished)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a complete run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture(scope="module")
def study(settings, tmp_path_factory):
    """Two methods and three seeds, and a call that plays it again."""
    place = tmp_path_factory.mktemp("study") / "study"

    def play(**changes):
        given = {"method": ["bce()", "asl()"], "seed": range(3), "num_rounds": 2, "out": place, **changes}
        return api.sweep(settings(engine="auto"), progress=False, **given)

    return play(), play


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))

    assert found.attempted > 0
    assert found.failed == 0, capsys.readouterr().out


# Runs


def test_a_run_says_what_was_recorded(run, finished, tiny):
    experiment, _ = tiny()
    result = json.loads((finished / "result.json").read_text())

    assert split_settings(run.settings)[0] == experiment
    assert run.status == "complete"
    assert repr(run) == f"Run({str(finished)!r}, complete, round 4 of 4)"
    assert run.best_round == result["best_round"]
    assert run.metrics() == pytest.approx(result["metrics"], nan_ok=True)
    for name in ("rounds", "clients", "hosts", "labels", "evaluations"):
        pd.testing.assert_frame_equal(getattr(run, name), pd.read_parquet(finished / f"{name}.parquet"))
    pd.testing.assert_series_equal(run.curve(), run.rounds.set_index("round")["server/mAP"])
    assert run.curve("client/mAP/mean").index.tolist() == [4]
    with pytest.raises(InputError, match=r"'server/mAp', got none\. .*'server/mAP'"):
        run.curve("server/mAp")


def test_tables_are_copies(run):
    rounds = run.rounds
    rounds["loss"] = 0.0

    assert (run.rounds["loss"] > 0).all()


def test_a_run_under_way_is_read_as_far_as_it_is(copied):
    (copied / "result.json").unlink()
    log = copied / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if '"round","round":2' in line.replace('"event":', ""))
    log.write_text("".join(lines[: second + 1]) + lines[second + 1][:9])
    run = api.load(copied)

    assert run.status == "interrupted"
    assert run.rounds["round"].tolist() == [1, 2]
    with FileLock(copied / ".lock"):
        assert run.status == "running"
    log.write_text("".join(lines[:-1]))
    assert run.rounds["round"].tolist() == [1, 2, 3, 4]
    with log.open("a") as file:
        file.write('{"event":"failed","reason":"bad day"}\n')
    assert run.status == "failed"
    with pytest.raises(InputError, match=r"Expected .* to be a complete run"):
        run.metrics()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="to be the folder of a run"):
        api.load(tmp_path)
    with pytest.raises(InputError, match="to be the folder of a study"):
        api.load_study(tmp_path)
    (tmp_path / "study.json").write_text('{"rows": []}')
    interrupted = api.load_study(tmp_path)
    for text in (None, ""):
        if text is not None:
            (tmp_path / "table.csv").write_text(text)
        with pytest.raises(InputError, match="to be the table of a study, got none: it was interrupted before"):
            _ = interrupted.table
    with pytest.raises(InputError, match="Expected runs or studies, got none"):
        api.compare()


def test_network_prediction_and_scores_agree(run, tiny):
    corpus = images_of(*tiny())
    scores = run.scores("test", "last")
    pixels = corpus.images.take(scores.rows)
    network = run.network("last")
    with torch.inference_mode():
        logits = network(to_float(pixels))

    assert not network.training
    np.testing.assert_allclose(torch.sigmoid(logits).numpy(), scores.scores, atol=1e-6)
    found = run.predict(torch.from_numpy(pixels[:7]), "last")
    assert list(found.columns) == list(corpus.label_names)
    np.testing.assert_allclose(found, scores.scores[:7], atol=1e-6)


def test_files_are_read_as_fedmlic_predict_reads_them(run, tiny, tmp_path):
    from PIL import Image

    pixels = images_of(*tiny()).images.take(np.arange(2))
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)

    expected = run.predict(pixels)
    for given in (tmp_path, files, [str(file) for file in files]):
        found = run.predict(given)
        assert found.index.tolist() == [str(file) for file in files]
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 24, 24, 3)), np.zeros((24, 24, 3), np.uint8), np.zeros((1, 3, 24, 24), np.uint8)]
)
def test_other_pixels_are_refused(run, wrong):
    with pytest.raises(InputError, match=r"Expected images to be files or uint8 \[images, 24, 24, 3\]"):
        run.predict(wrong)


def test_another_model_than_best_or_last_is_refused(run):
    with pytest.raises(InputError, match="Expected which to be 'best' or 'last', got 'first'"):
        run.network("first")


# Playing


def test_a_run_is_played_once(settings, finished, tmp_path):
    first = api.run(settings(), out=tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    again = api.run(settings(method="bce"), out=tmp_path / "run", progress=False)  # another way to write it

    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
    assert again.rounds.equals(first.rounds)
    hashes = [json.loads((path / "result.json").read_text())["weights_sha256"] for path in (first.path, finished)]
    assert hashes[0] == hashes[1]
    with pytest.raises(InputError, match=r"got one of others: learning-rate 0\.1, not 0\.003\. Choose another out"):
        api.run(settings(), learning_rate=0.1, out=tmp_path / "run")


def test_settings_of_a_run_and_of_a_recipe_are_changed_by_name(run):
    with pytest.raises(InputError, match=r"'num-round'.*'num-rounds'"):
        api.run(run, num_round=3)
    with pytest.raises(InputError, match="Expected a recipe or a TOML file, got 'quikc'"):
        api.run("quikc")
    with pytest.raises(InputError, match="Expected a recipe, settings or a run first, got int"):
        api.run(3)


def test_what_is_interrupted_says_how_to_go_on_and_comes_to_the_same(settings, finished, tmp_path, monkeypatch):
    shown = Display.event

    def interrupt(self, kind, values):
        shown(self, kind, values)
        if kind == "round" and values["round"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Display, "event", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"Go on with resume\('.*run'\)"):
            api.run(settings(), out=tmp_path / "run", progress=False)
    stopped = api.load(tmp_path / "run")
    assert stopped.status == "interrupted"
    assert len(stopped.rounds) < 4

    with pytest.raises(InputError, match="Expected changes of where a run is computed, got method"):
        api.resume(tmp_path / "run", method="asl()")
    run = api.run(settings(), out=tmp_path / "run", progress=False)

    assert run.status == "complete"
    assert (
        json.loads((run.path / "result.json").read_text())["weights_sha256"]
        == json.loads((finished / "result.json").read_text())["weights_sha256"]
    )


def test_a_complete_run_of_other_code_is_told(settings, copied):
    note = copied / "code.json"
    about = json.loads(note.read_text())
    name = next(iter(about["files"]))
    note.write_text(json.dumps({**about, "files": {**about["files"], name: "0" * 16}}))

    with pytest.warns(OtherCodeWarning, match=f"made with other code than the present .changed: {name}"):
        api.run(settings(), out=copied, progress=False)


# Studies


def test_lists_are_axes_and_the_same_call_goes_on(study):
    found, play = study
    before = {run.path: (run.path / "result.json").stat().st_mtime_ns for run in found.runs}

    assert list(found.rows) == ["bce()", "asl()"]
    assert [run.settings["seed"] for run in found.rows["asl()"]] == [0, 1, 2]
    assert found.table["state"].tolist() == ["complete"] * 6
    assert found.table["server/mAP"].tolist() == [run.metrics()["server/mAP"] for run in found.runs]
    again = play()
    assert {run.path: (run.path / "result.json").stat().st_mtime_ns for run in again.runs} == before
    assert api.load_study(found.path).table.equals(found.table)


def test_a_comparison_is_that_of_the_tables(study):
    found = api.compare(study[0])
    values = study[0].table.pivot_table(index="seed", columns="method", values="server/mAP")
    difference = (values["asl()"] - values["bce()"]).to_numpy()
    pair = found.pairs.iloc[0]

    np.testing.assert_allclose(found.by_seed[["asl", "bce"]], values[["asl()", "bce()"]])
    assert found.rows.loc["bce", "std"] == pytest.approx(values["bce()"].std())
    assert (pair["first"], pair["second"], pair["num_seeds"]) == ("asl", "bce", 3)
    assert pair["mean"] == pytest.approx(difference.mean())
    expected = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert pair["p"] == pytest.approx(expected.pvalue)
    assert any("too few seeds" in note for note in found.notes)
    assert "| asl - bce | 3 |" in str(found)
    by_run = api.compare(study[0].runs, by="method")
    assert by_run.pairs.equals(found.pairs)


def test_failed_runs_are_told(study, monkeypatch):
    from sim.sweep import start

    failed = {"label": "bce(), seed 0", "run": "runs/bce", "reason": "ValueError: bad day\ntraceback"}
    monkeypatch.setattr(start, "sweep", lambda *_, **__: {"failed": [failed]})

    told = r"1 runs failed; the same call tries them again\. bce\(\), seed 0: ValueError: bad day \(runs/bce\)$"
    with pytest.warns(FailedRunsWarning, match=told):
        study[1]()


def test_an_axis_of_what_cannot_vary_is_refused(settings, tmp_path):
    with pytest.raises(InputError, match="workers says where and how fast a run is computed"):
        api.sweep(settings(), workers=[1, 2], out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


# What clients hold


def test_a_shard_is_what_training_sees_and_never_the_truth(settings, tiny):
    corpus = images_of(*tiny())
    federation = open_federation(*tiny(), corpus)
    rows, observed = federation.training.of(2)
    truth = corpus.labels.take(rows)
    images = api.shard(settings(), 2)

    assert len(images) == federation.sizes[2]
    assert np.array_equal(images.labels, observed)
    assert (images.labels.numpy()[~known(observed)] == UNKNOWN).all()
    assert (truth != observed).any()  # there is something to hide
    pixels, labels = images[:]
    assert torch.equal(pixels, to_float(corpus.images.take(rows)))
    assert torch.equal(labels, images.labels)
    assert torch.equal(images[-1][0], pixels[-1])
    stored = api.shard(settings(), 2, stored=True)
    assert torch.equal(stored[3][0], torch.from_numpy(corpus.images.take(rows[3:4])[0]))
    with pytest.raises(IndexError):
        images[len(images)]
    with pytest.raises(ValueError, match="this client's own images"):
        images._images.take(federation.training.of(1)[0])
    assert not any(type(value).__name__ in {"Corpus", "Federation"} for value in vars(images).values())


def test_a_shard_goes_through_a_data_loader(run):
    held_out = api.shard(run, 1, held_out=True)
    images = api.shard(run, client=1)

    batches = list(DataLoader(images, batch_size=8))
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), images[:][0])
    assert len(held_out) > 0
    assert not set(held_out._rows.tolist()) & set(images._rows.tolist())
    with pytest.raises(InputError, match="Expected client to be 0 to 5, got 6"):
        api.shard(run, 6)


def test_clients_are_counted(settings, tiny):
    federation = open_federation(*tiny(), images_of(*tiny()))
    table = api.clients(settings())

    assert table["images"].tolist() == federation.sizes.tolist()


# Where it is called from


SCRIPT = """
from sim import api
run = api.run("quick", num_rounds=1, num_clients=3, cohort_size=0, method="own.own()", workers=2, out="run")
study = api.sweep("quick", num_rounds=1, num_clients=3, cohort_size=0, method=["bce()", "own.own()"], out="study")
print(run.status, [run.status for run in study.runs])
"""

OWN = """
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method
from fedmlic.training import classifier
def own() -> Method:
    return classifier(mean_binary_cross_entropy)
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_and_finds_a_plug_in_beside_it(tmp_path):
    """Workers and players do not run the script again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "own.py").write_text(OWN)
    root = str(Path(__file__).parents[3])
    found = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stderr
    assert found.stdout == "complete ['complete', 'complete']\n"
    assert "round 1/1" in found.stderr


class _Shell:
    kernel = object()


class _Handle:
    def __init__(self, shown):
        self.shown = [shown]

    def update(self, shown, *, raw):
        assert raw
        self.shown.append(shown)


def test_a_notebook_shows_one_output_that_is_written_anew(monkeypatch):
    import types

    handles = []

    def display(shown, *, raw, display_id):
        assert raw
        assert display_id
        handles.append(_Handle(shown))
        return handles[-1]

    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=_Shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    from sim.api.progress import FIRST, LAST, open_progress
    from sim.console import say

    console = open_progress(shown=True)
    for number in range(40):
        say(console, f"round {number} [of 40]")

    (handle,) = handles
    lines = handle.shown[-1]["text/plain"].splitlines()
    assert lines == [f"round {n} [of 40]" for n in range(FIRST)] + ["..."] + [
        f"round {n} [of 40]" for n in range(40 - LAST, 40)
    ]


def test_nothing_is_shown_where_nothing_is_wanted(settings, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.run(settings(num_rounds=1), out=tmp_path / "run", progress=False)

    assert capfd.readouterr() == ("", "")

"""How a run starts, what it keeps, how it ends."""

import itertools
import json
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fedmlic.datasets.multidigits import LABEL_NAMES
from fedmlic.errors import InputError
from fedmlic.evaluation import Evaluator
from fedmlic.kept_scores import SCORE_ERROR, kept_rounds, path_of, read_scores
from fedmlic.learner import label_space
from fedmlic.record import MANIFEST_HASH, TABLES, RunFolder, _hash_of, create, open_run, read_json
from strategies.server.rounds import Progress
from strategies.server.server import FolderRecord, build_server, start_of
from strategies.strategy import State, Strategy


@pytest.fixture
def parts(tiny, tmp_path):
    experiment, runtime = tiny()
    return create(tmp_path / "run", experiment, runtime), build_server(experiment, runtime)


def test_a_new_run_starts_with_the_initial_model_and_keeps_what_is_frozen(parts):
    folder, server = parts

    start = start_of(folder, server)

    assert (start.round, start.best_round, start.seconds) == (0, 0, 0.0)
    assert start.best_value == -math.inf
    assert torch.equal(start.state.flat, server.learner.resident.flat)
    server.learner.resident.flat.add_(1)
    assert not torch.equal(start.state.flat, server.learner.resident.flat)
    with safe_open(folder.path / "frozen.safetensors", framework="pt") as frozen:
        assert set(frozen.keys()) == set(server.learner.resident.other_state())
        assert json.loads(frozen.metadata()["label_names"]) == list(server.corpus.label_names)
        assert json.loads(frozen.metadata()["image_shape"]) == [24, 24, 3]


@pytest.mark.parametrize("best", [-math.inf, 0.0, 0.25])
def test_a_checkpoint_brings_back_everything_bit_for_bit(parts, best):
    folder, server = parts
    layout = server.learner.resident.layout
    flat = layout.pack({name: torch.randn(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)})
    memory = {"momentum": torch.randn(7), "count": torch.tensor(3)}
    progress = Progress(5, State(flat, memory), best_round=4, best_value=best, seconds=1.5)
    record = FolderRecord(folder, server)
    record.event("round", {"round": 5})

    record.checkpoint(progress)
    record.settle()
    found = start_of(folder, server)

    assert found.state.flat.numpy().tobytes() == flat.numpy().tobytes()
    assert set(found.state.memory) == set(memory)
    assert all(torch.equal(found.state.memory[name], memory[name]) for name in memory)
    assert (found.round, found.best_round, found.best_value, found.seconds) == (5, 4, best, 1.5)


def test_only_the_last_and_the_best_are_kept(parts):
    folder, server = parts
    record = FolderRecord(folder, server)
    for number in range(1, 7):
        best = min(number, 2)
        record.checkpoint(Progress(number, State(server.learner.resident.flat), best_round=best, best_value=0.5))
    record.settle()

    assert folder.checkpoints() == [2, 5, 6]


def test_events_are_written_in_order_and_a_checkpoint_counts_those_before_it(parts, monkeypatch):
    folder, server = parts
    record = FolderRecord(folder, server)
    hold = threading.Event()
    write = RunFolder.save_checkpoint

    def slowly(*arguments):
        hold.wait(10)
        write(*arguments)

    monkeypatch.setattr(RunFolder, "save_checkpoint", slowly)
    record.event("round", {"round": 1})
    record.checkpoint(Progress(1, State(server.learner.resident.flat)))
    record.add_events("client", [{"client": 1}, {"client": 2}])
    hold.set()
    record.settle()

    assert [event["event"] for event in folder.events()] == ["round", "client", "client"]
    with folder.events_path.open("rb") as log:
        assert folder.checkpoint_values(1)["events_bytes"] == len(log.readline())


def test_what_cannot_be_written_is_told_and_nothing_is_written_after_it(parts, monkeypatch):
    folder, server = parts
    record = FolderRecord(folder, server)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    record.checkpoint(Progress(1, State(server.learner.resident.flat)))
    with pytest.raises(OSError, match="No space"):  # noqa: PT012  (whichever call comes after it)
        for _ in range(100):
            record.event("round", {"round": 2})
            time.sleep(0.01)
    with pytest.raises(OSError, match="No space"):
        record.event("round", {"round": 3})
    with pytest.raises(OSError, match="No space"):
        record.settle()

    assert not list(folder.events())


def test_other_images_are_refused_before_anything_is_cut(parts):
    folder, server = parts
    record = FolderRecord(folder, server)
    record.checkpoint(Progress(1, State(server.learner.resident.flat)))
    record.event("round", {"round": 2})
    record.settle()
    file = folder.checkpoint_folder / "round-00001.json"
    values = read_json(file)
    values["corpus"] = "another"
    values[MANIFEST_HASH] = _hash_of(values)
    file.write_text(json.dumps(values))

    with pytest.raises(InputError, match=r"corpus another.*Restore them, or start a new run"):
        start_of(folder, server)
    assert len(list(folder.events())) == 1


def test_the_label_space_is_the_data_sets_unless_it_is_fixed(tiny, parts):
    _, server = parts
    names = tuple(server.corpus.label_names)

    assert label_space(tiny()[0], server.corpus) == names
    assert label_space(tiny(label_names=" , ".join(names))[0], server.corpus) == names
    for wrong in ("cat,dog", ",".join(reversed(names)), ",".join(names[:-1])):
        with pytest.raises(InputError, match="Leave label-names empty"):
            label_space(tiny(label_names=wrong)[0], server.corpus)


def test_a_finished_run_has_everything_a_reader_wants(finished):
    import pandas as pd

    found = read_json(finished / "result.json")
    events = list(open_run(finished).events())
    tables = {name: pd.read_parquet(finished / f"{name}.parquet") for name in ("rounds", "clients", "labels")}

    assert [event["event"] for event in events if event["event"] in {"start", "end"}] == ["start", "end"]
    assert events[-1]["weights-sha256"] == found["weights_sha256"]
    assert tables["rounds"]["round"].tolist() == [1, 2, 3, 4]
    assert len(tables["clients"]) == 16
    assert len(tables["labels"]) == 4 * 2 * 10
    assert set(tables["labels"]["label"]) == set(LABEL_NAMES)
    last = tables["rounds"].iloc[-1]
    assert last["server/mAP"] == pytest.approx(found["metrics"]["server/mAP"])
    by_label = tables["labels"].query("round == 4 and split == 'test'")["ap"].astype(float)
    assert by_label.mean() == pytest.approx(found["metrics"]["server/mAP"])
    assert found["num_values"] > 0
    assert list((finished / "tensorboard").glob("events.*"))


def test_the_result_has_the_metrics_of_the_last_and_of_the_best_model(finished):
    import pandas as pd

    found = read_json(finished / "result.json")
    rounds = pd.read_parquet(finished / "rounds.parquet").set_index("round")

    assert rounds["server/val/mAP"].idxmax() == found["best_round"]
    for metrics, number in ((found["metrics"], found["rounds"]), (found["best_metrics"], found["best_round"])):
        server = {name: value for name, value in metrics.items() if name.startswith("server/")}
        assert set(server) == {name for name in rounds.columns if name.startswith("server/")}
        assert server == pytest.approx(rounds.loc[number, list(server)].to_dict(), nan_ok=True)


@pytest.mark.parametrize(
    ("keep", "best", "expected"),
    [("none", 2, []), ("every", 2, [1, 2, 3]), ("last", 2, [3]), ("best", 2, [2]), ("best", 3, [3]), ("best", 0, [3])],
)
def test_scores_of_the_wanted_rounds_are_kept(parts, keep, best, expected):
    folder, server = parts
    runtime = server.runtime.model_copy(update={"keep_scores": keep})
    record = FolderRecord(folder, replace(server, runtime=runtime))
    evaluation = Evaluator(server.learner, server.corpus, 0.5).score(server.learner.resident.flat.clone())
    for number in (1, 2, 3):
        progress = Progress(number, State(server.learner.resident.flat), best_round=min(number, best), best_value=0.5)
        record.scores(progress, evaluation)
        record.checkpoint(progress)
    record.settle()

    assert kept_rounds(folder.path) == expected
    if expected:
        found = read_scores(path_of(folder.path, expected[0], "val"))
        assert np.abs(found.scores - evaluation.scores["val"]).max() <= SCORE_ERROR * 1.001
        assert found.belongs_to == (folder.identity(), server.corpus.content)


def test_a_resumed_run_does_not_keep_scores_of_rounds_that_it_plays_again(parts):
    folder, server = parts
    record = FolderRecord(folder, replace(server, runtime=server.runtime.model_copy(update={"keep_scores": "every"})))
    evaluation = Evaluator(server.learner, server.corpus, 0.5).score(server.learner.resident.flat.clone())
    for number in (1, 2):
        record.scores(Progress(number, State(server.learner.resident.flat)), evaluation)
        if number == 1:
            record.checkpoint(Progress(1, State(server.learner.resident.flat)))
    record.settle()

    assert start_of(folder, server).round == 1
    assert kept_rounds(folder.path) == [1]


def test_settings_and_results_are_on_tensorboards_page_of_hyper_parameters(finished, tiny):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata

    file = next((finished / "tensorboard").glob("events.*"))
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    content = {value.tag: value.metadata.plugin_data.content for value in values if "_hparams_" in value.tag}
    settings = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG]).hparams
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])

    assert settings["method"].string_value == tiny()[0].method
    assert settings["learning-rate"].number_value == tiny()[0].learning_rate
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    assert metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG]).end_time_secs > 0
    result = read_json(finished / "result.json")
    shown = {value.tag: value.tensor.float_val[0] for value in values if value.tag.startswith(("last/", "best/"))}
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"last/server/mAP", "best/server/val/mAP", "last/client/mAP/worst"} <= set(shown) <= tags
    assert shown["last/server/mAP"] == pytest.approx(result["metrics"]["server/mAP"])
    assert shown["best/server/val/mAP"] == pytest.approx(result["best_metrics"]["server/val/mAP"])


def test_the_curves_in_tensorboard_are_those_of_the_log(finished):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    file = next((finished / "tensorboard").glob("events.*"))
    found = {}
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag == "server/mAP":
                found[event.step] = value.tensor.float_val[0]

    noted = {e["round"]: e["server/mAP"] for e in open_run(finished).events() if e["event"] == "round"}
    assert found == pytest.approx(noted, rel=1e-6)


def test_a_failure_of_the_server_is_written_down(play, tmp_path, monkeypatch):
    from strategies import labelwise

    def broken(*, shared="annotations"):
        def aggregate(state, updates, here):
            del state, here
            list(updates)
            message = "the server broke"
            raise ZeroDivisionError(message)

        del shared
        return Strategy(aggregate)

    monkeypatch.setattr(labelwise, "labelwise", broken)
    with pytest.raises(ZeroDivisionError):
        play(tmp_path / "run")

    last = list(open_run(tmp_path / "run").events())[-1]
    assert (last["event"], last["reason"]) == ("failed", "ZeroDivisionError: the server broke")


def test_the_tables_of_a_run_under_way_hold_its_last_round(parts, monkeypatch):
    import pandas as pd

    folder, server = parts
    monkeypatch.setattr("strategies.server.server.TABLES_EVERY_S", 0.0)
    monkeypatch.setattr("strategies.server.server.TABLES_SHARE", 1e9)
    record = FolderRecord(folder, server)
    state = State(server.learner.resident.flat.clone(), {})

    for number in (1, 2):
        record.add_events("client", [{"round": number, "client": 0, "loss": None}])
        record.event("round", {"round": number, "server/mAP": None})
        record.checkpoint(Progress(number, state))
        record.settle()

        assert pd.read_parquet(folder.path / "rounds.parquet")["round"].tolist() == list(range(1, number + 1))
        assert pd.read_parquet(folder.path / "clients.parquet")["error"].tolist() == [""] * number
    assert pd.read_parquet(folder.path / "rounds.parquet")["server/mAP"].dtype == np.float64
    assert not list(folder.path.glob(".*.tmp"))


def test_the_tables_cost_at_most_their_share_of_the_time(parts, monkeypatch):
    """A clock that jumps 40 s per look: each writing takes 40 s, so the next may come 800 s later."""
    folder, server = parts
    now = itertools.count(0, 40)
    monkeypatch.setattr("strategies.server.server.time.monotonic", lambda: next(now))
    written = []
    monkeypatch.setattr(RunFolder, "write_tables", lambda _: written.append(1))
    record = FolderRecord(folder, server)

    for _ in range(60):
        record._tables_when_due()

    assert 2 <= len(written) <= 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_or_failed_run_has_tables(play, tmp_path, monkeypatch, error):
    import pandas as pd

    from strategies.server import rounds

    original = rounds.sample_cohort

    def third(*args, **kwargs):
        if kwargs["round_number"] == 3:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(rounds, "sample_cohort", third)
    out = tmp_path / "run"

    with pytest.raises(error):
        play(out)

    tables = {name: pd.read_parquet(out / f"{name}.parquet") for name in TABLES}
    assert tables["rounds"]["round"].tolist() == [1, 2]
    assert len(tables["clients"]) == 8
    assert len(tables["evaluations"]) == 0
    assert not (out / "result.json").exists()

"""The setting ``start``: a run that begins with another run's model, rows of labels by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fedmlic.arrays import sha256
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.record import open_run, read_frozen, read_json
from sim.run import resume
from strategies.server import server
from strategies.server.first_model import first_model

SECRET = 1e-30
"""A learning rate whose steps are lost in rounding: training changes nothing."""


def images(root, labels):
    """24 images of owners A and B, who annotate labels of their own: ``labels`` as {owner: names}."""
    root.mkdir()
    names = sorted({name for each in labels.values() for name in each})
    lines = [",".join(["path", "owner", "split", *names])]
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        owner = sorted(labels)[number % 2]
        cells = [str((number + k) // 2 % 2) if name in labels[owner] else "" for k, name in enumerate(names)]
        if number > 19:
            cells = [str((number + k) % 2) for k in range(len(names))]
        lines.append(",".join([f"{number}.png", owner, "test" if number > 19 else "train", *cells]))
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    own = {"dataset": f"folder(root={str(root)!r}, image_size=24)", "partition": "natural()", "num_clients": 0}
    return {**own, "cohort_size": 0, "regime": "complete()", "num_rounds": 1, "method": "bce()", "holdout_fraction": 0}


@pytest.fixture(scope="module")
def two(tmp_path_factory, play):
    """A complete run of two rounds on labels cat and dog, and its settings."""
    base = tmp_path_factory.mktemp("two")
    settings = images(base / "photos", {"A": ["cat", "dog"], "B": ["cat", "dog"]})
    play(base / "run", **{**settings, "num_rounds": 2})
    return base / "run", settings


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Settings with a label between and one before: A annotates bee and cat, B cat, cow and dog."""
    return images(tmp_path_factory.mktemp("grown") / "photos", {"A": ["bee", "cat"], "B": ["cat", "cow", "dog"]})


def same(one, other):
    """But for a mean's rounding to multiples of 2^-36."""
    torch.testing.assert_close(one, other, rtol=0, atol=2**-35)


def model_of(path, number):
    tensors, _ = open_run(path).load_checkpoint(number)
    return {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}


def test_rows_of_labels_go_by_name_and_new_ones_keep_their_initial_weights(play, tiny, tmp_path, two, grown):
    source = model_of(two[0], 2)
    learner = build_learner(tiny(**grown, seed=4)[0], ("bee", "cat", "cow", "dog"), (24, 24, 3))
    initial = learner.resident.layout.unpack(learner.resident.flat)

    play(tmp_path / "run", **grown, learning_rate=SECRET, start=str(two[0]), seed=4)

    found = model_of(tmp_path / "run", 1)
    rows = [name for name in found if found[name].shape[:1] == (4,) and source[name].shape[:1] == (2,)]
    assert rows
    assert set(found) == set(source) == set(initial)
    for name, tensor in found.items():
        if name in rows:
            same(tensor[[1, 3]], source[name])  # cat and dog, whatever stands between them
            same(tensor[[0, 2]], initial[name][[0, 2]])
        else:
            same(tensor, source[name])
    noted = read_json(tmp_path / "run" / "start.json")
    assert noted["new_labels"] == ["bee", "cow"]
    assert (noted["run"], noted["round"]) == (str(two[0]), 2)
    manifest = json.loads((two[0] / "checkpoints" / "round-00002.json").read_text())
    assert noted["checkpoint_sha256"] == manifest["sha256"]
    flat, about = first_model(tiny(**grown, start=str(two[0]), seed=4)[0], learner)
    assert about == noted
    assert noted["weights_sha256"] == sha256(learner.resident.layout, flat)


def test_two_clients_by_hand(play, tmp_path, two, grown):
    """Surgical aggregation: the mean of both for cat, A's own row of bee, B's own rows of cow and dog."""
    alone = {}
    for client in "01":
        # The only client of such a run: its model is the client's own.
        changes = {**grown, "start": str(two[0]), "strategy": "surgical()", "single_client": client}
        play(tmp_path / client, **changes)
        alone[client] = model_of(tmp_path / client, 1)

    play(tmp_path / "both", **grown, start=str(two[0]), strategy="surgical()")

    found = model_of(tmp_path / "both", 1)
    for name in ("head.weight", "head.bias"):
        first, second = (alone[client][name].double() for client in "01")
        expected = torch.stack([first[0], (first[1] + second[1]) / 2, second[2], second[3]])
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of Ray
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:GitWildMatchPattern:DeprecationWarning")  # of Ray, Flower
@pytest.mark.parametrize(
    "engine", ["processes", pytest.param("ray", marks=pytest.mark.slow), pytest.param("flower", marks=pytest.mark.slow)]
)
def test_one_hash_with_workers_of_their_own(play, tmp_path, two, grown, engine):
    expected = play(tmp_path / "in-process", **grown, start=str(two[0]))

    result = play(tmp_path / engine, **grown, start=str(two[0]), engine=engine, workers=2)

    assert result["weights_sha256"] == expected["weights_sha256"]
    other = play(tmp_path / "initial", **grown)
    assert other["weights_sha256"] != expected["weights_sha256"]


def test_a_resumed_run_does_not_need_the_other_one(play, tmp_path, two, grown, monkeypatch):
    shutil.copytree(two[0], tmp_path / "source")
    changes = {**grown, "num_rounds": 2, "start": str(tmp_path / "source")}
    expected = play(tmp_path / "whole", **changes)
    calls = []

    def once(self, number, *rest):
        calls.append(number)
        if number == 2:
            raise KeyboardInterrupt
        return original(self, number, *rest)

    original = server.Rounds._round
    monkeypatch.setattr(server.Rounds, "_round", once)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "run", **changes)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "source")

    assert calls == [1, 2]
    assert resume(tmp_path / "run")["weights_sha256"] == expected["weights_sha256"]


def test_last_best_and_rounds_of_the_other_run(tiny, two):
    experiment = tiny(**two[1])[0]
    learner = build_learner(experiment, ("cat", "dog"), (24, 24, 3))
    layout = learner.resident.layout
    for which, number in (("@1", 1), ("@2", 2), ("@last", 2), ("", 2), ("@best", 2)):
        flat, about = first_model(experiment.model_copy(update={"start": f"{two[0]}{which}"}), learner)
        assert about["round"] == number, "without validation images nothing is best, and the last counts"
        assert sha256(layout, flat) == sha256(layout, layout.pack(model_of(two[0], number)))
    assert torch.equal(first_model(experiment, learner)[0], learner.resident.flat)


UNFIT = {
    "another method": ({"method": "bce(hidden=[4])"}, "no exchanged hidden.0.bias, .*head.weight of shape"),
    "another model": ({"model": "small_cnn(width=8)"}, "of shape"),
    "another part that trains": ({"model": "small_cnn()", "mods": "fedper()"}, "keep tensors to themselves"),
    "no such run": ({"start": "nowhere"}, "to be the folder of a run"),
    "no such round": ({"start": "RUN@7"}, "a kept round of .* \\[1, 2\\], got 7"),
    "a home of nobody": ({"start": "~no-such-person/run"}, "Write the whole path"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_do_not_fit_are_refused_before_anything_is_written(play, tmp_path, two, grown, case):
    changes, text = UNFIT[case]
    start = changes.get("start", "RUN").replace("RUN", str(two[0]))

    with pytest.raises(InputError, match=text):
        play(tmp_path / "run", **{**grown, **changes, "start": start})

    assert not (tmp_path / "run").exists()


def test_labels_that_are_gone_or_in_another_order_are_refused(play, tmp_path, two):
    own = images(tmp_path / "photos", {"A": ["cat"], "B": ["cat", "cow"]})
    with pytest.raises(InputError, match=r"to have all labels of start=.*, got none called dog"):
        play(tmp_path / "run", **own, start=str(two[0]))
    turned = two[1]["dataset"].replace("image_size", "label_names=['dog', 'cat'], image_size")
    with pytest.raises(InputError, match=r"in its order, got another: \['dog', 'cat'\]"):
        play(tmp_path / "run", **{**two[1], "dataset": turned, "start": str(two[0])})


def test_a_run_that_is_not_complete_is_refused(play, tmp_path, two, grown):
    shutil.copytree(two[0], tmp_path / "source")
    (tmp_path / "source" / "result.json").unlink()

    with pytest.raises(InputError, match="Expected start to be a complete run"):
        play(tmp_path / "run", **grown, start=str(tmp_path / "source"))


def frozen_words(text):
    return f"fedlgt(width=64, layers=1, dropout=0.0, text={text!r}, readout='shared')"


def test_what_never_trains_must_be_the_same_for_the_labels_of_both(play, tmp_path, two, grown):
    """Vectors of words are those of the name, at their own width or more; random ones depend on all labels."""
    for text in ("glove()", "random_orthogonal()"):
        play(tmp_path / text[:3], **{**two[1], "method": frozen_words(text)})
    grown = {**grown, "learning_rate": SECRET}

    play(tmp_path / "run", **{**grown, "method": frozen_words("glove()"), "start": str(tmp_path / "glo")})

    source, found = (model_of(tmp_path / name, 1) for name in ("glo", "run"))
    assert found
    for name, tensor in found.items():
        same(tensor, source[name])
    assert read_frozen(tmp_path / "run")[1] == ("bee", "cat", "cow", "dog")
    with pytest.raises(InputError, match="which never trains, with other values"):
        play(
            tmp_path / "other",
            **{**grown, "method": frozen_words("random_orthogonal()"), "start": str(tmp_path / "ran")},
        )


def test_groups_of_labels_that_a_new_label_would_change_are_refused(play, tmp_path, two, grown):
    method = "ml_decoder(groups=1, width=8, heads=1)"
    play(tmp_path / "source", **{**two[1], "method": method})

    with pytest.raises(InputError, match="deals labels to groups by their order"):
        play(tmp_path / "run", **{**grown, "method": method, "start": str(tmp_path / "source")})


def test_where_a_run_began_is_part_of_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert Experiment(start="run").start == str(tmp_path / "run")
    assert Experiment(start="run").identity() != Experiment().identity()

"""Putting a run together on this machine."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clients.opening import open_host
from fedmlic.errors import InputError
from fedmlic.record import read_json
from sim.engines.workers import num_workers
from sim.run import describe_federation, resume, run
from sim.watch import Watch


class Notes(Watch):
    """Writes down what a display would hear of."""

    def __init__(self):
        self.heard = []

    def building(self, what, done, total):
        self.heard.append(("building", what, done, total))

    def warning(self, text):
        self.heard.append(("warning", text))

    def started(self, folder, experiment, resumed_round):
        assert folder.path.exists()
        self.heard.append(("started", experiment.num_rounds, resumed_round))

    def turn(self, round_number, turn, total):
        self.heard.append(("turn", round_number, turn.client, total))

    def event(self, kind, values):
        self.heard.append(("event", kind, values.get("round")))


def test_a_display_hears_of_everything_in_order(tiny, tmp_path):
    notes = Notes()
    dataset = "multidigits(num_train=240, num_val=30, num_test=60, image_size=24, num_owners=12, seed=77)"

    run(*tiny(num_rounds=2, dataset=dataset), tmp_path / "run", notes)

    kinds = [entry[0] for entry in notes.heard]
    assert kinds.index("building") < kinds.index("started") < kinds.index("turn")
    built = [entry for entry in notes.heard if entry[0] == "building"]
    assert built[-1][2] == built[-1][3] == 330
    turns = [entry for entry in notes.heard if entry[0] == "turn"]
    assert [turn[1] for turn in turns] == [1] * 4 + [2] * 4
    assert all(turn[3] == 4 for turn in turns)
    assert ("event", "round", 2) in notes.heard
    assert ("started", 2, 0) in notes.heard


@pytest.fixture
def photos(tmp_path):
    """A folder of 40 images of two owners with a table; one image is damaged, one label is in test only."""
    root = tmp_path / "photos"
    root.mkdir()
    lines = ["path,labels,owner,split"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        label = "late" if number == 39 else "ab"[number % 2]
        lines.append(f"{number}.png,{label},{('Nord', 'Süd')[number // 2 % 2]},{'test' if number > 31 else 'train'}")
    (root / "5.png").write_bytes(b"no image")
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def test_your_own_images_with_what_is_to_be_known_of_them(tiny, photos, tmp_path):
    notes = Notes()
    own = {"dataset": f"folder(root={str(photos)!r}, image_size=24)", "partition": "natural()", "num_clients": 0}
    own |= {"cohort_size": 0, "num_rounds": 1, "regime": "complete()"}
    with pytest.raises(InputError, match="bad-files=skip"):
        run(*tiny(**own), tmp_path / "run")
    with pytest.raises(InputError, match=r"at most 1\.00% of 40 images .*max-bad-fraction"):
        run(*tiny(**own, bad_files="skip"), tmp_path / "run")

    result = run(*tiny(**own, bad_files="skip", max_bad_fraction=0.1), tmp_path / "run", notes)

    assert [entry[1] for entry in notes.heard if entry[0] == "warning"] == result["warnings"]
    left_out, untrained = result["warnings"]
    assert left_out == "1 image could not be read and was left out"
    assert "1 of 3 labels are present on test images but on no training image as annotated: 'late'" in untrained
    noted = read_json(tmp_path / "run" / "data.json")
    hashes = {name: noted.pop(name) for name in ("corpus", "federation")}
    assert all(len(value) == 16 for value in hashes.values())
    named = {"untrained_labels": ["late"], "unannotated_labels": [], "client_names": ["Nord", "Süd"]}
    named["present_counts"] = [14, 11, 0]
    assert noted == {"warnings": result["warnings"], **named}
    assert resume(tmp_path / "run") == result
    clients = pd.read_parquet(tmp_path / "run" / "clients.parquet")
    assert dict(zip(clients["client"], clients["client-name"], strict=True)) == {0: "Nord", 1: "Süd"}
    other = tiny(**own)[0].identity()
    assert tiny(**own, bad_files="skip", max_bad_fraction=0.1)[0].identity() == other


def test_a_watch_may_ignore_everything(tiny, tmp_path):
    assert run(*tiny(num_rounds=1), tmp_path / "run", Watch())["rounds"] == 1


@pytest.mark.parametrize(
    ("workers", "cohort", "clients", "expected"),
    [(3, 10, 20, 3), (30, 10, 20, 10), (30, 0, 20, 20), (1, 10, 20, 1), (5, 0, 0, 5)],
)
def test_there_are_never_more_workers_than_clients_to_play(tiny, workers, cohort, clients, expected):
    experiment, runtime = tiny(num_clients=clients, cohort_size=cohort, workers=workers)

    assert num_workers(experiment, runtime) == expected


def test_by_default_there_is_a_worker_per_core(tiny, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)), raising=False)

    assert num_workers(*tiny(workers=0)) == 3
    assert num_workers(*tiny(workers=0, cohort_size=2)) == 2


def test_the_federation_described_is_the_one_that_is_played(tiny):
    experiment, runtime = tiny()
    described = describe_federation(experiment, runtime)

    info = open_host("w", experiment, runtime, label_names=described.label_names).info()

    assert np.array_equal(described.sizes, info.sizes)
    assert info.clients.tolist() == list(range(6))


def test_a_host_that_sees_other_labels_is_refused(tiny):
    with pytest.raises(InputError, match="Expected w to see the labels"):
        open_host("w", *tiny(), label_names=("a", "b"))


def test_a_cohort_larger_than_what_the_partition_found_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(InputError, match="at most the 12 clients that natural"):
        run(*tiny(partition="natural()", num_clients=0, cohort_size=13), tmp_path / "run")

    assert not (tmp_path / "run").exists()
    found = run(*tiny(partition="natural()", num_clients=0, cohort_size=12, num_rounds=1), tmp_path / "run")
    assert found["rounds"] == 1


def test_labels_that_nobody_annotates_are_recorded_apart(play, tmp_path):
    """A run with two withheld labels: their numbers beside the others', in every table, and who they are."""
    regime = "compose(regimes=['random_missing()', 'withheld(count=2)'])"
    result = play(tmp_path / "run", regime=regime, num_rounds=2, method="assume_negative()")

    noted = read_json(tmp_path / "run" / "data.json")
    apart, metrics = noted["unannotated_labels"], result["metrics"]
    assert len(apart) == 2
    told, guessed = result["warnings"]
    assert f"2 of 10 labels are annotated on no training image: {apart[0]!r}, {apart[1]!r}" in told
    assert "assume_negative() takes entries that nobody annotated as absent: the 2 labels" in guessed
    labels = pd.read_parquet(tmp_path / "run" / "labels.parquet").query("round == 2")
    assert set(labels.query("not annotated")["label"]) == set(apart)
    for split, side in (("test", "server"), ("val", "server/val")):
        here = labels[labels["split"] == split]
        assert metrics[f"{side}/mAP"] == pytest.approx(here[here["annotated"]]["ap"].mean())
        assert metrics[f"{side}/mAP/unannotated"] == pytest.approx(here[~here["annotated"]]["ap"].mean())
        assert metrics[f"{side}/num-evaluable"] + metrics[f"{side}/num-evaluable/unannotated"] == here["ap"].count()
    rounds = pd.read_parquet(tmp_path / "run" / "rounds.parquet")
    assert rounds["best-round"].iloc[-1] == rounds["server/val/mAP"].idxmax() + 1
    assert not any("unannotated" in name for name in metrics if name.startswith("client/"))
    clean = play(tmp_path / "bce", regime=regime, num_rounds=1)
    assert [text for text in clean["warnings"] if "assume" in text] == []

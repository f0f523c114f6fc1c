import json
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.corpus import open_corpus
from fedmlic.dataset import Dataset, Table
from fedmlic.errors import InputError
from fedmlic.federation import build_federation
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN
from fedmlic.regime import Assignment
from fedmlic.regimes.hapi import hapi
from fedmlic.seeds import text_keys
from fedmlic.spec import build

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "hapi.py"))
tree, TRUTH, ANSWERS, confidence_of = (FIXTURE[n] for n in ("tree", "TRUTH", "ANSWERS", "confidence_of"))
LABELS = ("dog", "night", "plant life", "Sky")
NORMAL = ("dog", "night", "plant_life", "sky")
"""What HAPI calls the labels; it never says night."""

GOOGLE, MICROSOFT = ("google_mic", "20-10-28"), ("microsoft_mic", "20-10-28")
LATER = ("google_mic", "22-05-23")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("hapi")
    tree(path)
    return path


def assignment_of(ids=tuple(TRUTH), client=0, labels=None, names=LABELS):
    truth = np.array([[int(name in TRUTH[i]) for name in NORMAL] for i in TRUTH], dtype=np.int8)
    truth = truth[: len(ids)] if labels is None else labels
    return Assignment(truth, text_keys(list(ids)), None, client, 0, names)


def brute_force(run, *, unsaid=ABSENT, blind=UNKNOWN, empty=None):
    """A plain loop over the answers of one run."""
    said = ANSWERS[run]
    ever = {name for names in said.values() for name in names}
    rows = []
    for example in TRUTH:
        row = [PRESENT if n in said[example] else unsaid if n in ever else blind for n in NORMAL]
        nothing = [empty if n in ever else blind for n in NORMAL]
        rows.append(nothing if empty is not None and not said[example] else row)
    return rows


def observe(root, assignment=None, **options):
    regime = hapi(root=str(root), benchmark="mir", **options)
    return regime.annotate(assignment or assignment_of()).tolist()


# What is written down


@pytest.mark.parametrize("run", sorted(ANSWERS))
@pytest.mark.parametrize("unsaid", ["absent", "unknown"])
@pytest.mark.parametrize("blind", ["absent", "unknown"])
def test_it_is_what_a_plain_loop_over_the_file_gives(root, run, unsaid, blind):
    states = {"absent": ABSENT, "unknown": UNKNOWN}
    expected = brute_force(run, unsaid=states[unsaid], blind=states[blind])

    assert observe(root, apis=[run[0]], date=run[1], unsaid=unsaid, blind=blind) == expected


def test_an_image_of_which_nothing_is_said(root):
    options = {"apis": ["google_mic"], "date": "first"}

    assert observe(root, empty="unknown", **options) == brute_force(GOOGLE, empty=UNKNOWN)
    assert observe(root, empty="absent", unsaid="unknown", **options) == brute_force(
        GOOGLE, unsaid=UNKNOWN, empty=ABSENT
    )
    for empty in ("absent", "unknown"):
        # Google never names night: nobody annotated it, on empty images as on the others.
        assert {row[1] for row in observe(root, empty=empty, blind="unknown", **options)} == {UNKNOWN}
        assert {row[1] for row in observe(root, empty=empty, blind="absent", **options)} == {ABSENT}


def test_a_label_missed_too_often_counts_as_never_named(root):
    """Google (2020) misses sky on 3 of 4 images and dog on 1 of 3; it never names the other two."""
    expected = np.array(brute_force(GOOGLE))
    for rate, blind in ((0.76, []), (0.75, [3]), (0.33, [0, 3]), (1.0, [])):
        wanted = expected.copy()
        wanted[:, blind] = UNKNOWN

        assert observe(root, apis=["google_mic"], date="first", blind_miss_rate=rate) == wanted.tolist()


def test_images_of_little_confidence_are_unknown(root):
    expected = [
        [UNKNOWN] * 4 if names and confidence_of(names) < 0.55 else row
        for names, row in zip(ANSWERS[MICROSOFT].values(), brute_force(MICROSOFT), strict=True)
    ]

    assert observe(root, apis=["microsoft_mic"], min_confidence=0.55) == expected
    assert expected != brute_force(MICROSOFT)


def test_what_the_data_set_does_not_know_stays(root):
    labels = assignment_of().labels.copy()
    labels[0], labels[1, 0] = UNKNOWN, UNCERTAIN

    observed = observe(root, assignment_of(labels=labels), apis=["microsoft_mic"])

    assert observed[0] == [UNKNOWN] * 4
    assert observed[1][0] == UNCERTAIN
    assert observed[2:] == brute_force(MICROSOFT)[2:]


def test_the_truth_as_an_annotator(root):
    assert observe(root, apis=["truth"]) == assignment_of().labels.tolist()
    assert (
        hapi(root=str(root), benchmark="coco", apis=["truth"]).annotate(assignment_of()).tolist()
        == assignment_of().labels.tolist()
    )


# Who annotates


def test_dates(root):
    for date, run in (("first", GOOGLE), ("latest", LATER), ("20-10-28", GOOGLE), ("22-05-23", LATER)):
        assert observe(root, apis=["google_mic"], date=date) == brute_force(run)


def test_each_client_draws_one_annotator_and_keeps_it(root):
    regime = hapi(root=str(root), benchmark="mir", apis=["google_mic", "microsoft_mic", "truth"])
    kinds = {
        json.dumps(brute_force(LATER)): "google",
        json.dumps(brute_force(MICROSOFT)): "microsoft",
        json.dumps(assignment_of().labels.tolist()): "truth",
    }
    drawn = [kinds[json.dumps(regime.annotate(assignment_of(client=client)).tolist())] for client in range(300)]
    again = [
        kinds[json.dumps(regime.annotate(assignment_of(client=client)).tolist())] for client in reversed(range(300))
    ]

    assert drawn == again[::-1]
    # 100 expected of each; three standard deviations of a binomial(300, 1/3) are 24.5.
    assert all(abs(number - 100) <= 24.5 for number in Counter(drawn).values())
    assert len(set(drawn)) == 3


def test_dates_can_be_drawn_too(root):
    regime = hapi(root=str(root), benchmark="mir", apis=["google_mic"], date="drawn")
    found = Counter(json.dumps(regime.annotate(assignment_of(client=client)).tolist()) for client in range(200))

    assert set(found) == {json.dumps(brute_force(GOOGLE)), json.dumps(brute_force(LATER))}
    assert min(found.values()) >= 100 - 3 * 50**0.5


def test_pairs_of_api_and_date_go_round(root):
    regime = hapi(root=str(root), benchmark="mir", date="drawn", assign="in_turn")
    latest = hapi(root=str(root), benchmark="mir", apis=["google_mic", "microsoft_mic", "truth"], assign="in_turn")
    runs = sorted(ANSWERS)

    for client in range(2 * len(runs)):
        found = regime.annotate(assignment_of(client=client)).tolist()
        assert found == brute_force(runs[client % len(runs)])
    kinds = [latest.annotate(assignment_of(client=client)).tolist() for client in (3, 4, 5)]
    assert kinds == [brute_force(LATER), brute_force(MICROSOFT), assignment_of().labels.tolist()]


# Joining


@pytest.mark.parametrize(
    ("example", "spelling"),
    [
        ("COCO_train2014_000000900001", "COCO_train2014_000000900001"),
        ("COCO_train2014_000000900001", "000000900001"),
        ("COCO_val2014_000000900001", "900001"),
        ("COCO_val2014_000000900001", "000000900001.jpg"),
        ("COCO_train2014_000000900001", "train2014/COCO_train2014_000000900001.jpg"),
        ("COCO_train2014_000000900001", "val2017/000000900001.jpg"),
        ("2011_000494", "2011_000494"),
        ("2011_000494", "JPEGImages/2011_000494.jpg"),
        ("im45", "im45.jpg"),
        ("im45", "im00045"),
    ],
)
def test_images_are_found_in_every_spelling(tmp_path, example, spelling):
    tree(tmp_path, "pascal", {example: ["dog"]}, {GOOGLE: {example: ["dog"]}})

    observed = hapi(root=str(tmp_path), benchmark="pascal").annotate(
        Assignment(np.zeros((1, 1), np.int8), text_keys([spelling]), None, 0, 0, ("dog",))
    )

    assert observed.tolist() == [[PRESENT]]


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), keep=st.integers(0, 6))
def test_any_images_in_any_order_get_their_own_labels(root, order, keep):
    rows = order[:keep]
    ids = [list(TRUTH)[row] for row in rows]
    labels = assignment_of().labels[rows]

    observed = observe(root, assignment_of(ids, labels=labels), apis=["microsoft_mic"])

    assert observed == [brute_force(MICROSOFT)[row] for row in rows]


def test_images_that_are_not_covered(root):
    ids = [*TRUTH, "im77", "im78"]
    labels = np.zeros((8, 4), np.int8)

    with pytest.raises(InputError, match="got nothing about 2 of a client's 8"):
        observe(root, assignment_of(ids, labels=labels), apis=["microsoft_mic"])
    observed = observe(root, assignment_of(ids, labels=labels), apis=["microsoft_mic"], uncovered="unknown")
    assert observed == [*brute_force(MICROSOFT), [UNKNOWN] * 4, [UNKNOWN] * 4]


@pytest.mark.parametrize(
    ("rename", "apis", "message"),
    [
        ({"D-O G": "hound", "dog": "cat", "sky": "Sky"}, ["google_mic"], r"'hound' for 'D-O G', 'cat' for 'dog'"),
        ({"dog": "hound"}, ["truth"], r"left out where apis are \['truth'\].*got {'dog': 'hound'}\. Leave it out"),
    ],
)
def test_a_rename_that_says_two_things_or_does_nothing_is_refused(root, rename, apis, message):
    with pytest.raises(InputError, match=message):
        hapi(root=str(root), benchmark="mir", apis=apis, rename=rename)
    assert hapi(root=str(root), benchmark="mir", apis=["google_mic"], rename={"dog": "hound", "Dog": "Hound"})


def test_label_names_may_be_written_differently_or_renamed(root):
    named_assignment = assignment_of(names=("hound", "NIGHT", "plant-life", "sky"))

    assert observe(root, named_assignment, apis=["microsoft_mic"], rename={"dog": "hound"}) == brute_force(MICROSOFT)
    expected = np.array(brute_force(MICROSOFT))
    expected[:, 0] = UNKNOWN  # nobody says hound
    assert observe(root, named_assignment, apis=["microsoft_mic"]) == expected.tolist()
    with pytest.raises(InputError, match=r"got \['dog', 'plant_life', 'sky'\] of 3 and \['a', 'b', 'c', 'd'\] of 4"):
        observe(root, assignment_of(names=("a", "b", "c", "d")), apis=["microsoft_mic"])


def test_renaming_that_would_lose_a_label_is_refused(root):
    names = ("hound", "night", "green plant", "sky")
    google, renamed = {"apis": ["google_mic"], "date": "first"}, {"DOG": "Hound", "plant life": "green-plant"}

    assert observe(root, assignment_of(names=names), apis=["microsoft_mic"], rename=renamed) == brute_force(MICROSOFT)
    for rename, message in (
        ({"dog": "houn"}, "'houn', the value of 'dog', which is no label of the data set. Did you mean 'hound'"),
        ({"dgo": "hound"}, "'dgo', which no chosen API says. Did you mean 'dog'"),
        (renamed, "'plant life', which no chosen API says"),
    ):
        with pytest.raises(InputError, match=message):
            observe(root, assignment_of(names=names), rename=rename, **google)
    # Another API that a client may draw says it, and so do the labels by which misses are counted.
    for more in ({"apis": ["google_mic", "microsoft_mic"]}, {**google, "blind_miss_rate": 0.9}):
        assert observe(root, assignment_of(names=names), rename=renamed, **more)


# FrugalMCT


def test_frugalmct_leaves_out_single_names(tmp_path):
    folder = tmp_path / "mlserviceperformance_PASCAL"
    folder.mkdir()
    (folder / "meta.csv").write_text("Index,MLaaS(API)\n2,Microsoft\n")
    said = {"a": [("dog", 0.9), ("cat", 0.4), ("cat", 0.7)], "b": [("cat", 0.2)]}
    entries = {i: [{"transcription": n, "confidence": c} for n, c in names] for i, names in said.items()}
    (folder / "Model2_PredictedLabel.txt").write_text(json.dumps(entries))
    for least, expected in {0.0: [[1, 1], [1, 0]], 0.5: [[1, 1], [0, 0]], 0.8: [[0, 1], [0, 0]]}.items():
        regime = hapi(root=str(tmp_path), benchmark="pascal", min_confidence=least, blind="absent")
        on = Assignment(np.zeros((2, 2), np.int8), text_keys(["a", "b"]), None, 0, 0, ("cat", "dog"))

        assert regime.annotate(on).tolist() == expected


# The federation's key


EARLY = {run: said for run, said in ANSWERS.items() if run != LATER}
"""The archive before Google was asked again."""


@pytest.fixture
def federation(tmp_path, monkeypatch):
    """A function: the federation under a regime's text, with HAPI's data in a folder that the environment names."""

    def table():
        return Table(list(TRUTH), ["train"] * len(TRUTH), assignment_of().labels, np.zeros(len(TRUTH), np.int64), None)

    def image(_row):
        return np.zeros((2, 2, 1), np.uint8)

    corpus = open_corpus(Dataset("tiny", "1", {}, LABELS, (2, 2, 1), table, image), tmp_path / "home")
    settings = {"partition": "iid()", "num_clients": 1, "seed": 0, "holdout_fraction": 0.0, "home": tmp_path / "home"}

    def opened(place, regime="hapi(benchmark='mir', apis=['google_mic'])"):
        monkeypatch.setenv("HAPI_DATA_DIR", str(place))
        return build_federation(corpus, regime=regime, **settings)

    return opened


def archive(place, answers=ANSWERS, truth=TRUTH):
    tree(place, answers=answers, truth=truth)
    return place


def labels_of(federation):
    """What the one client has of each image, in the order of the data set."""
    shard = federation.shard(0)
    return shard.labels[np.argsort(shard.rows)].tolist()


def test_another_folder_gives_its_own_labels_and_a_copy_the_same_federation(federation, tmp_path):
    swapped = {**ANSWERS, LATER: ANSWERS[MICROSOFT]}
    first = federation(archive(tmp_path / "first"))
    other = federation(archive(tmp_path / "other", swapped))
    copied = federation(archive(tmp_path / "copy"))

    assert labels_of(first) == brute_force(LATER)
    assert labels_of(other) == brute_force(MICROSOFT)
    assert copied.path == first.path != other.path


@pytest.mark.parametrize("apis", ["apis=['google_mic'], ", ""])
@pytest.mark.parametrize("nested", [False, True])
def test_a_newer_date_or_another_api_in_the_same_folder_gives_another_federation(federation, tmp_path, apis, nested):
    regime = f"hapi({apis}benchmark='mir')"
    if nested:
        composed = f"compose(regimes={['complete()', regime]!r})"
        regime = f"one_of(regimes={[composed]!r})"
    fewer = EARLY if apis else {run: said for run, said in ANSWERS.items() if run != MICROSOFT}
    place = archive(tmp_path / "data", fewer)
    before = federation(place, regime)
    archive(place)

    assert federation(place, regime).path != before.path


def test_a_file_counts_if_it_is_read(federation, tmp_path):
    chosen = "hapi(benchmark='mir', apis=['google_mic'])"
    rated = "hapi(benchmark='mir', apis=['google_mic'], blind_miss_rate=0.9)"
    place = archive(tmp_path / "data")
    before, judged = federation(place, chosen), federation(place, rated)
    archive(place, {**ANSWERS, MICROSOFT: ANSWERS[LATER]}, {**TRUTH, "im6": []})

    assert federation(place, chosen).path == before.path, "neither Microsoft's answers nor the truth are read"
    assert federation(place, rated).path != judged.path
    archive(place, {**ANSWERS, LATER: ANSWERS[GOOGLE]})
    assert labels_of(federation(place, chosen)) == brute_force(GOOGLE), "written anew under the same name"


# Faults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "coco"}, "to hold predictions for coco, got none"),
        ({"benchmark": "mir", "apis": ["gogle_mic"]}, r"got 'gogle_mic'\. Did you mean 'google_mic'\?"),
        ({"benchmark": "mir", "apis": ["google_mic"], "date": "20-10-29"}, "Did you mean '20-10-28'"),
        ({"benchmark": "mir", "root": "/nowhere"}, "Expected HAPI's data at"),
    ],
)
def test_what_is_not_there_is_explained(root, options, message):
    with pytest.raises(InputError, match=message):
        hapi(**{"root": str(root), **options})


def test_as_text(root):
    text = f"hapi(root={str(root)!r}, benchmark='mir', apis=['microsoft_mic'], rename={{'sky': 'Sky'}})"

    assert build("regime", text).annotate(assignment_of()).tolist() == brute_force(MICROSOFT)
    with pytest.raises(InputError, match="'coco', 'pascal' or 'mir'"):
        build("regime", "hapi(benchmark='imagenet')")

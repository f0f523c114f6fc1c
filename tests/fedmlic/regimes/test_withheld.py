"""Withheld labels: the same at every client, nested in their number, and known to the record."""

import itertools

import numpy as np
import pytest

from fedmlic import spec
from fedmlic.corpus import open_corpus
from fedmlic.dataset import Dataset, Table
from fedmlic.errors import InputError
from fedmlic.federation import build_federation
from fedmlic.labels import UNCERTAIN, known
from fedmlic.regime import Assignment, prepared
from fedmlic.seeds import text_keys
from fedmlic.spec import build

NAMES = tuple(f"label {number}" for number in range(12))


def assignment(client=0, seed=0, judged=None, labels=None):
    labels = np.random.default_rng(3).integers(0, 2, (40, 12)).astype(np.int8) if labels is None else labels
    keys = text_keys([f"image {i}" for i in range(len(labels))])
    more = {} if judged is None else {"judged": lambda: np.asarray(judged)}
    return Assignment(labels, keys, None, client, seed, NAMES, **more)


def hidden(text, assigned=None):
    """Names of the labels without a known entry."""
    assigned = assigned or assignment()
    observed = prepared(build("regime", text), assigned).annotate(assigned)
    return {name for name, column in zip(NAMES, observed.T, strict=True) if not known(column).any()}


def composed(*texts):
    return f"compose(regimes={list(texts)!r})"


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_count_withholds_a_subset_of_a_larger_one(seed):
    sets = [hidden(f"withheld(count={count})", assignment(seed=seed)) for count in range(12)]

    assert [len(found) for found in sets] == list(range(12))
    assert all(small < large for small, large in itertools.pairwise(sets))


def test_the_seed_decides_and_every_label_can_be_drawn():
    drawn = [hidden("withheld()", assignment(seed=seed)) for seed in range(80)]

    assert all(len(found) == 1 for found in drawn)
    assert set.union(*drawn) == set(NAMES)


def test_the_set_is_the_same_at_every_client_and_anywhere_in_a_composition():
    expected = hidden("withheld(count=4)")

    assert {frozenset(hidden("withheld(count=4)", assignment(client))) for client in range(6)} == {frozenset(expected)}
    for texts in (
        ["withheld(count=4)", "random_missing(known_fraction=0.9)"],
        ["label_noise()", "random_missing(known_fraction=0.9)", "withheld(count=4)"],
        ["complete()", "compose(regimes=['complete()', 'withheld(count=4)'])"],
        ["withheld(count=2)", "withheld(count=4)"],
    ):
        assert hidden(composed(*texts)) == expected


@pytest.mark.parametrize("other", ["label_noise(miss=0.3, spurious=0.3)", "candidate_sets()", "annotators()"])
@pytest.mark.parametrize("first", [True, False])
def test_what_others_write_wrongly_is_hidden_too_and_the_rest_is_theirs(other, first):
    texts = ["withheld(labels=['label 3', 'label 7'])", other]
    size_free = other.replace("annotators()", "annotators(size_effect=0, location_effect=0)")
    texts[1] = size_free
    text = composed(*(texts if first else texts[::-1]))

    assert hidden(text) == {"label 3", "label 7"}
    if not first:
        alone = build("regime", size_free).annotate(assignment())
        kept = [name not in {"label 3", "label 7"} for name in NAMES]
        assert np.array_equal(build("regime", text).annotate(assignment())[:, kept], alone[:, kept])


def test_uncertain_entries_stay_what_they_are():
    labels = np.full((4, 12), UNCERTAIN, np.int8)

    assert (build("regime", "withheld(count=11)").annotate(assignment(labels=labels)) == UNCERTAIN).all()


def test_only_labels_that_can_be_judged_are_drawn():
    judged = [9, 0, 5, 4, 0, 7, 0, 0, 5, 0, 0, 1]
    able = {NAMES[label] for label, count in enumerate(judged) if count >= 5}

    assert hidden("withheld(count=4)", assignment(judged=judged)) == able
    assert len(hidden("withheld(count=6, min_entries=1)", assignment(judged=judged))) == 6
    assert len(hidden("withheld(count=11, min_entries=0)", assignment(judged=judged))) == 11
    with pytest.raises(
        InputError, match=r"at most the 4 of 12 labels with at least 5 present and 5 absent test images"
    ):
        hidden("withheld(count=5)", assignment(judged=judged))


@pytest.mark.parametrize("labels", ["'label 2,  label 9'", "['label 9', 'label 2']", "('label 2', 'label 9')"])
def test_labels_by_name(labels):
    assert hidden(f"withheld(labels={labels})") == {"label 2", "label 9"}
    assert hidden(f"withheld(labels={labels})", assignment(judged=[0] * 12)) == {"label 2", "label 9"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("withheld(labels='label 2,lable 9')", r"lable 9': Did you mean 'label 9'\?"),
        ("withheld(labels='label 2,,label 9')", "an empty one at place 2 of 3"),
        ("withheld(labels='')", "an empty one at place 1 of 1"),
        ("withheld(labels=['label 2', 'label 2'])", "got 'label 2' more often"),
        ("withheld(labels='label 2', count=3)", "labels and count=3. Leave one out"),
        ("withheld(count=-1)", "greater than or equal to 0"),
        ("withheld(count=13)", "got 13"),
        ("withheld(count=12)", "leave a label that is annotated, got all 12 withheld"),
        ("withheld(cuont=2)", "Did you mean 'count'"),
    ],
)
def test_what_cannot_be_withheld_is_an_error(text, told):
    with pytest.raises(InputError, match=told):
        hidden(text)


def test_nothing_withheld_is_the_baseline():
    assert hidden("withheld(count=0)") == set()
    assert hidden("withheld(labels=[])") == set()


def federation(corpus, regime, home, **changes):
    settings = {"partition": "iid()", "num_clients": 4, "seed": 2, "holdout_fraction": 0.2, "home": home, **changes}
    return build_federation(corpus, regime=regime, **settings)


def test_a_federation_knows_its_unannotated_labels_whatever_the_partition(tmp_path):
    corpus = open_corpus(
        spec.build("dataset", "multidigits(num_train=80, num_val=4, num_test=60, image_size=24, num_owners=8)"),
    )
    three, five = (f"compose(regimes=['random_missing()', 'withheld(count={n})'])" for n in (3, 5))
    first = federation(corpus, three, tmp_path).unannotated_labels
    others = [
        federation(corpus, three, tmp_path, num_clients=7, partition="dirichlet(alpha=0.5)").unannotated_labels,
        federation(corpus, "withheld(count=3)", tmp_path).unannotated_labels,
    ]
    more = federation(corpus, five, tmp_path)

    assert len(first) == 3
    assert others == [first, first]
    assert set(first) < set(more.unannotated_labels)
    hidden_from = more.tallies().known.any(axis=0)
    assert [n for n, k in zip(corpus.label_names, hidden_from, strict=True) if not k] == list(more.unannotated_labels)
    assert federation(corpus, "complete()", tmp_path).unannotated_labels == ()
    present = (corpus.labels.take(np.asarray(corpus.splits["test"])) == 1).sum(axis=0)
    judged = dict(zip(corpus.label_names, np.minimum(present, 60 - present), strict=True))
    assert min(judged[name] for name in more.unannotated_labels) >= 5


def test_without_test_images_validation_images_count(tmp_path):
    """Of four labels only 'b' has both states there."""
    train = np.tile(np.array([[0, 1, 0, 1], [1, 0, 1, 0]], np.int8), (10, 1))
    val = np.tile(np.array([[0, 1, 1, -1], [0, 0, 1, -1]], np.int8), (5, 1))

    def table():
        labels = np.concatenate([train, val])
        return Table([f"i{i}" for i in range(30)], ["train"] * 20 + ["val"] * 10, labels, np.full(30, -1))

    dataset = Dataset(
        "tiny", "1", {}, ("a", "b", "c", "d"), (2, 2, 1), table, lambda row: np.full((2, 2, 1), row, "u1")
    )
    corpus = open_corpus(dataset, tmp_path)

    assert federation(corpus, "withheld()", tmp_path).unannotated_labels == ("b",)
    with pytest.raises(InputError, match="at most the 1 of 4 labels"):
        federation(corpus, "withheld(count=2)", tmp_path)

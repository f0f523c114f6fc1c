"""Settings: one flat namespace, checked once, with words that help."""

from __future__ import annotations

import hashlib
import json
import unicodedata

import pytest

from fedmlic.errors import InputError
from fedmlic.experiment import LATER_FIELDS, Experiment, Runtime, flower_config, split_settings


def test_dashes_and_underscores_are_the_same_key():
    one, runtime = split_settings({"num-clients": 7, "cohort_size": 3, "engine": "inprocess"})

    assert (one.num_clients, one.cohort_size, runtime.engine) == (7, 3, "inprocess")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num-client": 3}, "Did you mean 'num-clients'"),
        ({"num-rounds": -1}, "num-rounds"),
        ({"learning-rate": -1}, "learning-rate"),
        ({"cohort-size": 30, "num-clients": 20}, "at most num-clients"),
        ({"method": "fedlg()"}, "Did you mean 'fedlgt'"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"seed": "abc"}, "seed"),
        ({"engine": "spark"}, "engine"),
    ],
)
def test_bad_settings_are_told(settings, words):
    with pytest.raises(InputError, match=words):
        split_settings(settings)


def test_everything_wrong_is_told_at_once():
    with pytest.raises(InputError) as caught:
        split_settings({"num-rounds": -1, "batch-size": 0, "min-replies": 2})

    assert all(key in str(caught.value) for key in ("num-rounds", "batch-size", "min-replies"))


def test_the_identity_is_of_what_decides_the_weights():
    same = Experiment()

    assert Experiment().identity() == same.identity()
    assert Experiment(evaluate_every=7, threshold=0.3).identity() == same.identity()
    assert Experiment(seed=1).identity() != same.identity()
    assert Experiment(learning_rate=0.1).identity() != same.identity()


def test_what_is_held_out_as_a_whole_counts_and_old_identities_hold():
    """The hash without the setting, as it was made before there was one."""
    assert Experiment(holdout_by="owner").identity() != Experiment().identity()
    measured = (
        "evaluate_every",
        "evaluate_clients_every",
        "client_min_entries",
        "threshold",
        "tail_below",
        "head_above",
    )
    fields = Experiment().model_dump(exclude={*measured, "bad_files", "max_bad_fraction", *LATER_FIELDS})
    assert "holdout_by" not in fields
    assert Experiment().identity() == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def test_flowers_configuration_is_plain_and_comes_back():
    config = flower_config(Experiment(seed=5), Runtime(workers=3))

    assert all(isinstance(value, (bool, int, float, str)) for value in config.values())
    assert split_settings(config) == (Experiment(seed=5), Runtime(workers=3))


def test_label_names_are_in_composed_letters():
    whole, parts = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))

    assert split_settings({"label-names": f"{parts}, dog"})[0].label_names == f"{whole}, dog"


def test_what_happens_to_bad_files_is_no_part_of_the_identity_and_reaches_the_corpus():
    plain, skipping = (split_settings(s)[0] for s in ({}, {"bad-files": "skip", "max-bad-fraction": 0.2}))

    assert plain.identity() == skipping.identity()
    assert plain.reading() == {"bad_files": "fail", "max_bad_fraction": 0.01}
    assert skipping.reading() == {"bad_files": "skip", "max_bad_fraction": 0.2}

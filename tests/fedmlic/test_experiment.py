"""Settings: one flat namespace, checked once, with words that help."""

from __future__ import annotations

import pytest

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment, Runtime, flower_config, split_settings


def test_dashes_and_underscores_are_the_same_key():
    one, runtime = split_settings({"num-clients": 7, "cohort_size": 3, "engine": "inprocess"})

    assert (one.num_clients, one.cohort_size, runtime.engine) == (7, 3, "inprocess")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num-client": 3}, "Did you mean 'num-clients'"),
        ({"num-rounds": 0}, "num-rounds"),
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
        split_settings({"num-rounds": 0, "batch-size": 0, "min-replies": 2})

    assert all(key in str(caught.value) for key in ("num-rounds", "batch-size", "min-replies"))


def test_the_identity_is_of_what_decides_the_weights():
    same = Experiment()

    assert Experiment().identity() == same.identity()
    assert Experiment(evaluate_every=7, threshold=0.3).identity() == same.identity()
    assert Experiment(seed=1).identity() != same.identity()
    assert Experiment(learning_rate=0.1).identity() != same.identity()


def test_flowers_configuration_is_plain_and_comes_back():
    config = flower_config(Experiment(seed=5), Runtime(workers=3))

    assert all(isinstance(value, (bool, int, float, str)) for value in config.values())
    assert split_settings(config) == (Experiment(seed=5), Runtime(workers=3))

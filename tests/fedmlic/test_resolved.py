"""When two experiments are one."""

import pytest

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.resolved import differences, identity_of, resolved


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method": "bce"}, {"method": "bce(pool='mean')"}),
        ({"partition": "dirichlet(alpha=1)"}, {"partition": "dirichlet( alpha = 1.0 )"}),
        ({"partition": "dirichlet(alpha=1, key='rarest')"}, {"partition": "dirichlet(key='rarest', alpha=1)"}),
        ({"dataset": "multidigits(glyph_size=[0.4, 0.5])"}, {"dataset": "multidigits(glyph_size=(0.4, 0.5))"}),
        ({"mods": "clip(norm=1), int8"}, {"mods": "clip(norm=1.0),int8()"}),
        ({"label_names": "cat, dog"}, {"label_names": "cat,dog"}),
        (
            {"regime": "compose(regimes=['annotators', 'label_subset(labels_per_client=4)'])"},
            {"regime": "compose(regimes=['annotators()', \"label_subset(labels_per_client=4, rule='random')\"])"},
        ),
    ],
)
def test_texts_that_ask_for_the_same_are_one_experiment(one, other):
    assert identity_of(Experiment(**one)) == identity_of(Experiment(**other))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "bce(pool='logsumexp')"},
        {"seed": 1},
        {"threshold": 0.4},
        {"evaluate_every": 2},
        {"mods": "int8()"},
        {"regime": "compose(regimes=['annotators', 'label_subset(labels_per_client=4)'])"},
        {"single_client": "pooled"},
    ],
)
def test_every_other_setting_is_another_experiment(change):
    assert identity_of(Experiment(**change)) != identity_of(Experiment())


def test_the_order_of_mods_counts():
    one, other = Experiment(mods="int8(), fedper()"), Experiment(mods="fedper(), int8()")

    assert identity_of(one) != identity_of(other)


def test_an_identity_is_the_same_in_another_process_and_version():
    """Folders of runs are named by it."""
    assert identity_of(Experiment()) == "44136fa355b3"


def test_differences_are_named():
    one, other = resolved(Experiment(method="bce")), resolved(Experiment(method="bce()", seed=3, learning_rate=0.1))

    assert differences(one, other) == ["learning-rate", "seed"]


def test_a_wrong_argument_is_refused():
    with pytest.raises(InputError, match="pol"):
        identity_of(Experiment(method="bce(pol='mean')"))


def test_an_entry_that_cannot_be_looked_up_stays_as_it_is_written_where_that_is_asked_for():
    experiment = Experiment(method="gone.method( b=2, a=1 )", mods="clip(norm=1), gone.mod", partition="iid")
    unknown = []

    found = resolved(experiment, unknown)

    assert found["method"] == "gone.method(a=1, b=2)"
    assert found["mods"] == "clip(norm=1.0), gone.mod()"
    assert found["partition"] == resolved(Experiment(partition="iid()"))["partition"]
    assert unknown == ["method gone.method(a=1, b=2)", "mods gone.mod()"]
    with pytest.raises(InputError, match="no module 'gone'"):
        resolved(experiment)

"""Methods that look at annotations alone, where nobody ever says that a label is absent."""

import pytest

from fedmlic import spec
from fedmlic.labels import PRESENT, UNKNOWN
from sim.data.federation_warnings import examine
from sim.run import describe_federation

SENTENCE = "annotated as present and never as absent"


def said(tiny, method, **changes):
    federation = describe_federation(*tiny(**changes))
    return [line for line in examine(federation, method).warnings if SENTENCE in line]


@pytest.mark.parametrize("method", ["bce()", "asl()", "focal()", "ctran()", "two_way()"])
@pytest.mark.parametrize("regime", ["single_positive()", "positive_only()"])
def test_they_are_warned_of_under_present_only_labels(tiny, method, regime):
    (line,) = said(tiny, method, regime=regime)

    assert "10 of 10 labels" in line
    assert "regime that keeps absences" in line


@pytest.mark.parametrize("method", ["fedlsm()", "fedharmony()", "fedalign(pseudo=True)", "fedmlp(warm_up=3)"])
def test_methods_whose_guesses_come_from_annotations_are_warned_of_too(tiny, method):
    (line,) = said(tiny, method, regime="single_positive()")

    guesses = spec.build("method", method).guesses
    assert f"takes entries without annotation as {guesses}, which comes from annotated entries" in line
    assert said(tiny, method, regime="complete()") == []


def test_the_methods_that_the_advice_names_are_not_warned_of(tiny):
    (line,) = said(tiny, "bce()", regime="single_positive()")

    for method in ("assume_negative", "role"):
        assert method in line
        assert said(tiny, method, regime="single_positive()") == []


@pytest.mark.parametrize(
    ("method", "regime"),
    [("assume_negative()", "single_positive()"), ("role()", "positive_only()"), ("bce()", "complete()")],
)
def test_methods_that_guess_and_regimes_that_keep_absences_are_not(tiny, method, regime):
    assert said(tiny, method, regime=regime) == []


def test_without_a_method_nothing_is_said_of_methods(tiny):
    federation = describe_federation(*tiny(regime="single_positive()"))

    assert not any(SENTENCE in line for line in examine(federation).warnings)
    shard = federation.shard(0)
    assert set(shard.labels.ravel().tolist()) == {PRESENT, UNKNOWN}

"""What cannot work together is refused before anything is read, with the sentence that says what to change."""

import pytest

from fedmlic.errors import InputError
from fedmlic.spec import build, entries
from strategies.server.check import check_experiment

SGD = {"optimizer": "sgd", "learning_rate": 0.05, "allow_statistics": True, "statistics_min_clients": 1}
RULES = """
from strategies.strategy import Strategy, weighted_mean


def bringing(*, mods: list[str]) -> Strategy:
    return Strategy(weighted_mean, mods=tuple(mods))
"""
BROUGHT = {text.partition("(")[0]: rule for rule in entries("strategy") for text in build("strategy", rule).mods}
"""The rule of every mod that one brings."""
ALONE = {"proximal"}
"""Of these the mods that are complete without their rule."""


@pytest.fixture(autouse=True)
def _rules(plug):
    plug("checked_rules", RULES)


@pytest.mark.parametrize("name", sorted(BROUGHT))
def test_a_mod_that_its_rule_brings_is_not_named_again(tiny, name):
    """It would do the same twice: two divisions by a client's steps, two proximal terms."""
    rule = f"{BROUGHT[name]}()"

    with pytest.raises(InputError, match=rf"Expected mods without {name}, which {BROUGHT[name]}\(\) brings already"):
        check_experiment(*tiny(strategy=rule, mods=f"{name}()", **SGD))
    check_experiment(*tiny(strategy=rule, mods="clip(norm=1.0)", **SGD))


@pytest.mark.parametrize(
    ("mods", "told"),
    [
        ("clip(norm=1.0), int8(), clip(norm=2.0)", r"got clip\(norm=1\.0\) and clip\(norm=2\.0\)"),
        ("int8(), int8()", r"got int8\(\) and int8\(\)"),
        ("int8(), fedmlic.mods.int8.int8()", r"got int8\(\) and fedmlic\.mods\.int8\.int8\(\)"),
    ],
)
def test_no_mod_is_named_twice(tiny, mods, told):
    with pytest.raises(InputError, match=rf"Expected every mod once in mods, {told}\. Leave one out"):
        check_experiment(*tiny(mods=mods))


@pytest.mark.parametrize("name", sorted(BROUGHT))
def test_a_mod_that_needs_its_rule_is_refused_beside_another(tiny, name):
    """It would fail in every client of round 1, or train another algorithm in silence."""
    if name in ALONE:
        check_experiment(*tiny(strategy="fedavg()", mods=f"{name}()", **SGD))
        return
    with pytest.raises(InputError, match=rf"Expected strategy={BROUGHT[name]}\(\) with {name}\(\), .*fedavg\(\)"):
        check_experiment(*tiny(strategy="fedavg()", mods=f"{name}()", **SGD))


@pytest.mark.parametrize("text", ["fedper()", "fedrep()", "fedbn(norms='all')"])
def test_a_rule_brings_no_mod_that_keeps_tensors_private(tiny, text):
    """Every host lays out its network by the experiment alone, before it hears of a rule."""
    rule = f"checked_rules.bringing(mods=[{text!r}])"

    with pytest.raises(InputError, match=r"keep tensors private to be named in mods, .* brings\."):
        check_experiment(*tiny(strategy=rule))
    check_experiment(*tiny(strategy="checked_rules.bringing(mods=['int8()'])", mods=text))


def test_a_rule_may_bring_what_needs_another_rule_of_the_catalogue(tiny):
    """A rule of one's own that sends the control variates itself."""
    check_experiment(*tiny(strategy="checked_rules.bringing(mods=['scaffold()'])", **SGD))

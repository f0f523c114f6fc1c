"""All problems of all stages are raised at once, each complete in itself."""

import pytest

from fedmlic.errors import InputError, listing
from fedmlic.problems import Problems


def fail(text):
    raise InputError(text)


def fail_with_list(name, problems):
    expected = f"Expected {name} to hold numbers"
    raise listing(expected, problems)


def test_what_stages_raise_is_collected_in_order():
    problems = Problems("Expected data set toy to be complete")

    assert problems.attempt(int, "7") == 7
    assert problems.attempt(fail, "Expected a.txt, got nothing.") is None
    assert problems.attempt(fail_with_list, "b.txt", ["line 1: x", "line 2: y"]) is None
    problems.add("an own one")
    with pytest.raises(InputError, match="got 4 problems") as caught:
        problems.finish()

    assert caught.value.problems == (
        "Expected a.txt, got nothing.",
        "Expected b.txt to hold numbers, got line 1: x",
        "Expected b.txt to hold numbers, got line 2: y",
        "Expected data set toy to be complete, got an own one",
    )


def test_a_collector_within_another_passes_everything_on_and_is_complete():
    outer = Problems("Expected toy")
    middle = outer.within("Expected folder a")
    inner = middle.within("Expected a/b.txt to hold words")
    inner.add("line 3: 7")
    middle.within("Expected files", complete=True).add("a/c.txt: no such file")

    assert (len(inner), len(middle), len(outer)) == (1, 2, 2)
    for collector in (middle, outer):
        with pytest.raises(InputError) as caught:
            collector.finish()
        assert caught.value.problems == ("Expected a/b.txt to hold words, got line 3: 7", "a/c.txt: no such file")


def test_only_bad_input_is_collected():
    problems = Problems("Expected toy")

    with pytest.raises(ValueError, match="invalid literal"):
        problems.attempt(int, "seven")
    problems.finish()


def test_a_list_of_problems_that_is_collected_twice_names_its_file_once():
    first, second = Problems("Expected one"), Problems("Expected two")
    first.attempt(fail_with_list, "b.txt", ["line 1: x"])
    second.attempt(first.finish)

    with pytest.raises(InputError) as caught:
        second.finish()
    assert caught.value.problems == ("Expected b.txt to hold numbers, got line 1: x",)

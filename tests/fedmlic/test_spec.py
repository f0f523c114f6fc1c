"""From text to factory: what is understood, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic import spec
from fedmlic.errors import InputError, nearest
from fedmlic.spec import Spec, build, entries, parse

LITERALS = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(0, 1e6),
    st.booleans(),
    st.text("abc'\" ", max_size=6),
    st.lists(st.integers()),
)
NAMES = st.from_regex(r"\A[a-z][a-z0-9_]{0,8}\Z").filter(lambda name: name not in {"as", "if", "in", "is", "or"})


@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.dictionaries(NAMES, LITERALS, max_size=4))
def test_what_is_written_is_read_again(parts, arguments):
    import keyword  # noqa: PLC0415

    if any(keyword.iskeyword(word) for word in [*parts, *arguments]):
        return
    written = Spec(".".join(parts), arguments)

    assert parse(str(written)) == written


def test_a_bare_name_is_a_call_without_arguments():
    assert parse(" iid ") == parse("iid()") == Spec("iid", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "look like name"),
        ("dirichlet(0.3)", "every argument by name"),
        ("dirichlet(alpha=x)", "alpha=x is not a number"),
        ("dirichlet(alpha=__import__('os'))", "is not a number"),
        ("dirichlet(alpha=1", "look like name"),
        ("dirichlet(**{})", "by name"),
        ("a + b", "look like name"),
        ("f()()", "look like name"),
    ],
)
def test_what_is_no_call_is_refused_and_nothing_is_evaluated(text, words):
    with pytest.raises(InputError, match=words):
        parse(text, "partition")


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("partition", "dirichlt()", "Did you mean 'dirichlet'"),
        ("partition", "dirichlet(alfa=1)", "Did you mean 'alpha'"),
        ("partition", "dirichlet(alpha='many')", "Expected alpha of partition dirichlet"),
        ("partition", "dirichlet(alpha=0)", "greater than"),
        ("partition", "iid(alpha=1)", "takes none|Known"),
        ("method", "nowhere_at_all.foo()", "no module 'nowhere_at_all'"),
        ("method", "fedmlic.method.foo()", "define a factory 'foo'"),
    ],
)
def test_wrong_names_and_arguments_name_the_right_ones(key, text, words):
    with pytest.raises(InputError, match=words):
        build(key, text)


def test_every_catalogue_has_entries_and_each_builds_or_says_what_it_needs():
    needs = {"folder": "root"}
    for key in spec.CATALOGUES:
        names = entries(key)
        assert names
        for name in names:
            if name in needs:
                with pytest.raises(InputError, match=needs[name]):
                    build(key, name)
            else:
                assert build(key, name) is not None


def test_nearest_lists_all_when_nothing_is_close():
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."

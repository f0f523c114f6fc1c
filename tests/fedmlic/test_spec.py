"""From text to factory: what is understood, and what is refused with which words."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic import spec
from fedmlic.errors import InputError, nearest
from fedmlic.experiment import Experiment
from fedmlic.learner import build_learner
from fedmlic.spec import CATALOGUES, Spec, build, entries, factory, is_entry, parse

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
    import keyword

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
        ("label_report(pairs=true)", r"pairs=true is not a number.*; write True\.$"),
        ("label_report(pairs=FALSE)", r"; write False\.$"),
        ("folder(label_names=null)", r"; write None\.$"),
        ("folder(label_names=[none])", r"; write None\.$"),
        ("folder(rename={'a': [-1, true]})", r"; write True\.$"),
        ("bce(x=[true, a, FALSE, b])", r"; write True and quote text and write False\.$"),
        ("bce(x=none.pt)", r"x=none\.pt is not a number.*; quote text\.$"),
        ("bce(x=a(null))", r"; quote text\.$"),
        ("bce(x=true+1)", r"; quote text\.$"),
        ("dirichlet(alpha=truex)", r"; quote text\.$"),
        ("dirichlet(alpha=1", "look like name"),
        ("dirichlet(**{})", "by name"),
        ("a + b", "look like name"),
        ("f()()", "look like name"),
        ("f(a={[1]: 2})", "is not a number"),
        ("f(a=1, a=2)", "look like name"),
        ("f(a=" + "[" * 500 + "]" * 500 + ")", "look like name|is not a number"),
        ("f(\0)", "look like name"),
        ("1", "look like name"),
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
        ("mods", "clip()", r"^Expected norm of mods clip to be given, got nothing. Write clip\(norm=...\).$"),
        ("method", "nowhere_at_all.foo()", "no module 'nowhere_at_all'"),
        ("method", "fedmlic.method.foo()", "define a factory 'foo'"),
        ("method", "os.system(command='true')", "says that it returns a Method, got builtin_function"),
        ("dataset", "builtins.dict()", "says that it returns a Dataset, got type"),
        ("method", "strategies.fedavg.fedavg()", "returns a Method, got one that returns Strategy"),
        ("strategy", "fedmlic.regimes.complete.complete()", "returns a Strategy, got one that returns Regime"),
    ],
)
def test_wrong_names_and_arguments_name_the_right_ones(key, text, words):
    with pytest.raises(InputError, match=words):
        build(key, text)


@pytest.mark.parametrize("key", CATALOGUES)
def test_one_name_is_an_entry_where_all_of_them_are_listed(key):
    folder = Path(importlib.util.find_spec(CATALOGUES[key]).submodule_search_locations[0])
    names = {file.stem for file in folder.glob("*.py")} | {"", ".", "no such", "nothing", "../spec", "a.b", "entries"}

    assert {name for name in names if is_entry(key, name)} == set(entries(key))


def test_a_file_that_changes_is_looked_at_again(monkeypatch, tmp_path):
    (tmp_path / "some_rules").mkdir()
    (tmp_path / "some_rules" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CATALOGUES, "strategy", "some_rules")
    assert not is_entry("strategy", "mine")
    (tmp_path / "some_rules" / "mine.py").write_text("def other():\n    pass\n")
    assert not is_entry("strategy", "mine")

    (tmp_path / "some_rules" / "mine.py").write_text("def mine():\n    pass\n")

    assert is_entry("strategy", "mine")
    assert entries("strategy") == ["mine"]


def test_every_catalogue_has_entries_and_each_builds_or_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("HAPI_DATA_DIR", str(tmp_path))
    for key in spec.CATALOGUES:
        names = entries(key)
        assert names
        for name in names:
            parameters = inspect.signature(factory(key, name)).parameters.values()
            needed = [p.name for p in parameters if p.default is p.empty]
            if (key, name) == ("regime", "hapi"):
                needed = ["HAPI"]  # files that the environment names and that are not here
            modules = getattr(sys.modules[factory(key, name).__module__], "IMPORTS", ())
            needed += [package for package in modules if importlib.util.find_spec(package) is None]
            if needed:
                with pytest.raises(InputError, match=needed[0]):
                    build(key, name)
            else:
                assert build(key, name) is not None


@pytest.mark.parametrize("missing", ["plu", "numpi", "plugged.more"])
def test_what_a_plug_in_itself_fails_to_import_is_its_authors_error(plug, missing):
    plug("plugged", f"import {missing}\n\n\ndef plugged():\n    pass\n")

    with pytest.raises(ModuleNotFoundError, match=missing):
        build("method", "plugged.plugged()")


def test_a_plug_in_is_found_by_its_dotted_name_and_checked_like_any_other(plug):
    plug("plugged", "from fedmlic.methods.bce import bce\n\n\ndef mine(*, n: int = 3):\n    return bce()\n")

    assert type(build("method", "plugged.mine(n=4)")).__name__ == "Method"
    with pytest.raises(InputError, match="Did you mean 'mine'"):
        build("method", "plugged.mind()")
    with pytest.raises(InputError, match=r"Expected n of method plugged\.mine: .*integer"):
        build("method", "plugged.mine(n='x')")


def test_nearest_lists_all_when_nothing_is_close():
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."


KINDS = """
import subprocess

from fedmlic.method import Method
from fedmlic.methods.bce import bce
from fedmlic.mod import Mod

called = []


def right(*, n: int = 1) -> Method:
    called.append("right")
    return bce()


def unsaid(*, n: int = 1):
    called.append("unsaid")
    return bce()


def another() -> Mod:
    called.append("another")


def text() -> str:
    called.append("text")


class Thing:
    def __init__(self):
        called.append("Thing")


bound = Thing.__init__
"""


@pytest.mark.parametrize("name", ["another", "text", "Thing", "subprocess.run", "called.append"])
def test_what_is_no_entry_of_the_kind_is_refused_before_it_is_called(plug, name):
    plug("kinds", KINDS)

    for ask in (spec.build, spec.check):
        with pytest.raises(InputError):
            ask("method", f"kinds.{name}()")
    import kinds

    assert kinds.called == []


@pytest.mark.parametrize("name", ["ctypes.util.test", "os.getcwd", "platform.python_version", "antigravity.geohash"])
def test_functions_of_other_packages_are_no_entries(name):
    for key in spec.CATALOGUES:
        with pytest.raises(InputError):
            spec.build(key, f"{name}()")


def test_a_factory_may_leave_its_type_unsaid_in_a_module_that_uses_this_project(plug):
    plug("kinds", KINDS)

    assert type(spec.build("method", "kinds.right()")).__name__ == "Method"
    assert type(spec.build("method", "kinds.unsaid(n=2)")).__name__ == "Method"


def test_names_from_outside_are_listed_without_importing_them():
    text = "clip(norm=1.0), my_lab.mods.mine(), gone.away(a=1)"

    assert spec.not_allowed("mods", text, []) == ["my_lab.mods.mine", "gone.away"]
    assert spec.not_allowed("mods", text, ["my_lab.*"]) == ["gone.away"]
    assert spec.not_allowed("mods", text, ["*"]) == []


NESTED = """
import pathlib

pathlib.Path(__file__).with_suffix(".imported").touch()

from fedmlic.methods.bce import bce
from fedmlic.text import VectorKind, learned


def mine():
    return bce()


def vectors(*, of: str = "") -> VectorKind:
    return learned()
"""


@pytest.mark.parametrize(
    "text",
    [
        "nested_lab.mine()",
        "probe_then_tune(method='nested_lab.mine()')",
        "fedlgt(text='nested_lab.vectors()')",
        "fedlgt(text=\"shuffled(of='nested_lab.vectors()')\")",
        "probe_then_tune(method=\"fedlgt(text='nested_lab.vectors')\")",
    ],
)
def test_code_from_outside_is_refused_wherever_it_is_named_and_nothing_is_imported(plug, text):
    folder = plug("nested_lab", NESTED)
    space = ("cat", "dog"), (16, 16, 3)

    with (
        spec.allowing([]),
        pytest.raises(InputError, match=r"what this device allows \(nothing\), got nested_lab\.\w+\. "),
    ):
        build_learner(Experiment(method=text, model="small_cnn(width=8)"), *space)
    with spec.allowing(["other.*"]), pytest.raises(InputError, match=r"allow-plugins='nested_lab\.\*'"):
        build_learner(Experiment(method=text, model="small_cnn(width=8)"), *space)

    assert not (folder / "nested_lab.imported").exists()
    assert "nested_lab" in spec.modules("method", text)


WIPE = """
import pathlib
from fedmlic.text import VectorKind, learned


def wipe(*, force: bool) -> int:
    pathlib.Path(__file__).with_suffix(".wiped").touch()
    return 0


class Wipe:
    def __init__(self, *, force: bool) -> None:
        wipe(force=force)


def vectors() -> VectorKind:
    return learned()
"""


@pytest.mark.parametrize("name", ["wipe_lab.wipe(force=True)", "wipe_lab.Wipe(force=True)"])
def test_a_function_that_makes_no_label_vectors_is_refused_before_it_is_called(plug, name):
    folder = plug("wipe_lab", WIPE)
    space = ("cat", "dog"), (32, 32, 3)

    with spec.allowing(["wipe_lab.*"]):
        for text in (name, f"shuffled(of='{name}')"):
            with pytest.raises(InputError, match=r"Expected label vectors wipe_lab\.[\w.]+ to be"):
                build_learner(Experiment(method=f"fedlgt(text={text!r})"), *space)
        build_learner(Experiment(method="fedlgt(text='wipe_lab.vectors()')"), *space)
    assert not (folder / "wipe_lab.wiped").exists()


def test_functions_beside_the_kinds_of_label_vectors_are_none():
    text = "fedmlic.text.state_vectors(spec='one_hot()', features=8, seed=0)"

    with spec.allowing([]), pytest.raises(InputError, match="to be a factory that says that it returns a VectorKind"):
        build_learner(Experiment(method=f"fedlgt(text={text!r})"), ("cat", "dog"), (32, 32, 3))


def test_inside_the_block_the_catalogues_and_what_is_allowed_work(plug):
    plug("nested_lab", NESTED)
    settings = Experiment(method="probe_then_tune(method='nested_lab.mine()')", model="small_cnn(width=8)")

    with spec.allowing(["nested_lab.*"]):
        build_learner(settings, ("cat", "dog"), (16, 16, 3))
    with spec.allowing([]):
        build_learner(Experiment(method="fedlgt(text='learned()')"), ("cat", "dog"), (32, 32, 3))
    build_learner(settings, ("cat", "dog"), (16, 16, 3))


def test_texts_of_a_catalogue_among_the_arguments_are_resolved_and_their_modules_found():
    short, long = "probe_then_tune(method='bce')", "probe_then_tune(method='bce()', probe_rounds=5)"

    assert spec.resolve("method", short) == spec.resolve("method", long)
    assert spec.modules("method", short) == ["fedmlic.methods.probe_then_tune", "fedmlic.methods.bce"]


def test_files_are_named_below_the_allowed_folders_only(tmp_path, monkeypatch):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "vectors.json").write_text(
        '{"cat": [1, 0], "dog": [0, 1], "negative": [1, 1], "positive": [1, 2]}'
    )
    (tmp_path / "private.json").write_text('{"Anna Muster": [1]}')
    (tmp_path / "allowed" / "link.json").symlink_to(tmp_path / "private.json")
    monkeypatch.chdir(tmp_path)

    def build_with(text):
        settings = Experiment(method=f"fedlgt(layers=1, text={text!r})", model="small_cnn(width=8)")
        return build_learner(settings, ("cat", "dog"), (16, 16, 3))

    places = [
        tmp_path / "private.json",
        tmp_path / "gone.json",
        "private.json",
        "../private.json",
        tmp_path / "allowed" / ".." / "private.json",
        tmp_path / "allowed" / "link.json",
        "~/private.json",
    ]
    for place in places:
        with (
            spec.allowing([], [str(tmp_path / "allowed")]),
            pytest.raises(InputError, match="to lie below what this device allows") as error,
        ):
            build_with(f"file(path={str(place)!r})")
        assert "Anna" not in str(error.value)
    with spec.allowing([]), pytest.raises(InputError, match=r"device allows \(nothing\)"):
        build_learner(Experiment(model=f"resnet(weights='{tmp_path}/w.pth')"), ("cat",), (16, 16, 3))

    with spec.allowing([], [str(tmp_path / "allowed")]):
        build_with(f"file(path={str(tmp_path / 'allowed' / 'vectors.json')!r})")
    with spec.allowing([], ["*"]):
        build_with(f"file(path={str(tmp_path / 'allowed' / 'vectors.json')!r})")


def test_what_a_file_holds_is_not_told_where_texts_are_somebody_elses(tmp_path):
    (tmp_path / "visits.json").write_text('{"Anna Muster": [1, 0]}')
    vectors = f"file(path={str(tmp_path / 'visits.json')!r})"
    text = f"fedlgt(layers=1, text={vectors!r})"
    settings = Experiment(method=text, model="small_cnn(width=8)")

    with pytest.raises(InputError, match="It holds: Anna Muster"):
        build_learner(settings, ("cat", "dog"), (16, 16, 3))
    with spec.allowing([], [str(tmp_path)]), pytest.raises(InputError) as error:
        build_learner(settings, ("cat", "dog"), (16, 16, 3))
    assert "Anna" not in str(error.value)


def test_names_with_slashes_that_are_no_places_here_pass():
    for text in ("timm/vit_tiny", "hf-hub:a/b", "file(path='x')", "", "package"):
        with spec.allowing([]):
            spec._check_files("model", "timm", text)

"""What every mod promises, whoever wrote it: all entries of the catalogue are found by themselves.

A plug-in that uses every hook goes through the same battery.
"""

import ast
import inspect
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clients.host import PRIVATE, Host
from clients.memory import FolderMemory
from clients.opening import open_federation
from fedmlic.errors import InputError
from fedmlic.mod import Mod
from fedmlic.protocol import Request
from fedmlic.record import open_run
from fedmlic.spec import build, entries, factory
from fedmlic.update import units_for
from strategies.server.server import build_server
from strategies.strategy import Strategy

ROOT = Path(__file__).parents[2]
TURNS = (ROOT / "tests" / "fixtures" / "turns.py").read_text(encoding="utf-8")
NAMES = os.environ.get("FEDMLIC_ENTRY", "").split() or entries("mods")
BUSY = "turns.busy"
REQUIRED = {"clip": "norm=1.0"}
"""Arguments of mods for which no default makes sense."""
every_mod = pytest.mark.parametrize("name", [*NAMES, BUSY])

CARRIED = {text.partition("(")[0]: rule for rule in entries("strategy") for text in build("strategy", rule).mods}
"""The rule that brings along a mod which needs what that rule sends."""


def text_of(name):
    """The mod with its defaults, as an experiment names it."""
    return f"{name}({REQUIRED.get(name, '')})"


@pytest.fixture(autouse=True)
def _turns(plug):
    plug("turns", TURNS)


@pytest.fixture
def changes(tiny):
    """A function: settings under which a mod works with its defaults."""

    def made(name):
        rule = CARRIED.get(name)
        chosen = {"strategy": f"{rule}()"} if rule else {"mods": text_of(name)}
        norms = {"model": "small_cnn(width=4, num_blocks=0, norm='pooled')"}
        settings = {"num_rounds": 2, **norms, "allow_statistics": True, "statistics_min_clients": 1, **chosen}
        mod = build("mods", text_of(name))
        if mod.refuses is not None and mod.refuses(tiny(**settings)[0]):
            settings |= {"optimizer": "sgd", "learning_rate": 0.05}
        assert mod.refuses is None or not mod.refuses(tiny(**settings)[0])
        return settings

    return made


def events(path, kind):
    return [event for event in open_run(path).events() if event["event"] == kind]


def test_the_catalogue_is_found():
    assert "proximal" in NAMES


@every_mod
def test_it_builds_with_its_defaults(name):
    assert isinstance(build("mods", text_of(name)), Mod)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_page_that_names_every_parameter(name):
    page = (ROOT / "docs" / "mods" / f"{name}.md").read_text(encoding="utf-8")
    if f"../strategies/{CARRIED.get(name)}.md" in page:  # the rule's page says the rest
        page += (ROOT / "docs" / "strategies" / f"{CARRIED[name]}.md").read_text(encoding="utf-8")

    assert all(parameter in page for parameter in inspect.signature(factory("mods", name)).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_a_documented_keyword_with_a_default(name):
    make = factory("mods", name)

    for parameter in inspect.signature(make).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert (parameter.default is parameter.empty) is (parameter.name in REQUIRED.get(name, "").partition("="))
        assert f"{parameter.name}:" in make.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_entries_do_not_know_each_other(name):
    source = Path(inspect.getsourcefile(factory("mods", name))).read_text(encoding="utf-8")
    imported = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}

    assert not imported & {f"fedmlic.mods.{other}" for other in NAMES}
    assert not any(module.partition(".")[0] in {"strategies", "sim", "clients"} for module in imported)


@every_mod
def test_in_process_and_on_two_processes_it_gives_one_hash_and_memory_only_where_it_says_so(
    play, changes, tmp_path, name
):
    settings = changes(name)
    expected = play(tmp_path / "in-process", **settings)
    result = play(tmp_path / "processes", engine="processes", workers=2, **settings)

    assert expected["weights_sha256"] == result["weights_sha256"]
    failed = [event["error"] for event in events(tmp_path / "in-process", "client") if event.get("error")]
    assert not failed
    kept = [list((tmp_path / run / "memory").rglob("*.safetensors")) for run in ("in-process", "processes")]
    mod = build("mods", text_of(name))
    if not mod.remembers and mod.private is None:
        assert kept == [[], []]
    else:
        assert kept[0]
    if mod.private is not None:
        names = {name for file in kept[0] for name in load_file(file)}
        own = {name.removeprefix(PRIVATE) for name in names if name.startswith(PRIVATE)}
        sent = {name.removeprefix("model/") for name in open_run(tmp_path / "in-process").load_checkpoint(2)[0]}
        assert own
        assert not own & sent
    first, second = (
        {file.relative_to(tmp_path / run): file.read_bytes() for file in files}
        for run, files in zip(("in-process", "processes"), kept, strict=True)
    )
    assert first == second


@every_mod
def test_a_turn_that_is_played_again_sends_and_keeps_the_same(tiny, changes, tmp_path, name):
    settings = changes(name)
    experiment, runtime = tiny(**settings)
    server = build_server(experiment, runtime)
    strategy: Strategy = build("strategy", experiment.strategy)
    place = FolderMemory(tmp_path / "memory")
    federation = open_federation(experiment, runtime, server.corpus)
    host = Host("test", experiment, federation, server.learner, memory=lambda _: place)
    resident = server.learner.resident
    state = strategy.init(resident.flat.clone(), resident.layout)
    request = Request(
        "train",
        1,
        state.flat,
        units_for(strategy.weighting, host.info().sizes.tolist(), 10),
        strategy.weighting,
        shared=state.shared,
        mods=strategy.mods,
    )
    results = []
    for number in (1, 2):
        here = replace(request, round=number, last={} if number == 1 else {3: 1, 1: 1})
        for clients in ([3, 1], [1, 3], [3, 1]):  # and once more after the other had its turn
            reply = host.play(here, clients)
            assert [turn.error for turn in reply.turns] == ["", ""]
            update = reply.updates[0]
            kept = {c: place.recall(c, number) if number in place.versions(c) else {} for c in (1, 3)}
            results.append(
                (
                    number,
                    update.sums.numpy().tobytes(),
                    {n: t.numpy().tobytes() for n, t in update.extras.items()},
                    {c: {n: t.numpy().tobytes() for n, t in tensors.items()} for c, tensors in kept.items()},
                    sorted((turn.client, turn.bytes_up, turn.bytes_down) for turn in reply.turns),
                )
            )

    assert results[0] == results[1] == results[2]
    assert results[3] == results[4] == results[5]
    assert all(place.versions(client) in ([], [1, 2]) for client in (1, 3))


@every_mod
def test_clients_trained_at_once_are_refused_where_steps_change(play, changes, tmp_path, name):
    if not build("mods", text_of(name)).changes_steps:
        return
    with pytest.raises(InputError, match="vectorize"):
        play(tmp_path / "run", vectorize=2, **changes(name))


def test_every_hook_of_the_plug_in_is_used(play, changes, tmp_path):
    play(tmp_path / "run", **changes(BUSY))
    turns = events(tmp_path / "run", "client")
    tensors, _ = open_run(tmp_path / "run").load_checkpoint(2)

    assert not any("head.bias" in name for name in tensors)
    values = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("model/"))
    for turn in turns:
        # 16 bits each and 3 bytes of scales, the norm as float32, the steps as int64.
        assert turn["bytes-up"] == 2 * values + 3 + 4 + 8
        counted = sum(
            tensor.numel() * (4 if tensor.is_floating_point() else 8)
            for name, tensor in tensors.items()
            if name.startswith("statistics/")
        )
        assert turn["bytes-down"] == 4 * values + counted
    place = FolderMemory(tmp_path / "run" / "memory")
    last = dict(tensors["last-turns"].tolist())
    for client, number in last.items():
        kept = place.recall(client, number)
        assert int(kept["turns"]) == sum(turn["client"] == client for turn in turns)
        assert {"private/head.bias", "change"} <= kept.keys()
        assert torch.isfinite(kept["change"]).all()

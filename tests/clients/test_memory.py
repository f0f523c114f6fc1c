"""What clients keep: a replayed or resumed turn reads what it read first, and nothing that is needed goes."""

import hashlib
import os
import time
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import memory
from clients.memory import FolderMemory, FolderRest, check_shared, digest, mark_shared
from fedmlic.errors import InputError


def kept(number):
    return {"own": torch.full((3,), float(number)), "steps": torch.tensor(number)}


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture(autouse=True)
def synced(monkeypatch):
    """What was waited for, in order, with what then lay in its folder; nothing waits for the disk."""
    seen = []
    monkeypatch.setattr(memory, "sync", lambda path: seen.append((path, sorted(path.parent.glob("*")))))
    return seen


@pytest.fixture
def place(tmp_path):
    return FolderMemory(tmp_path / "memory")


def test_before_its_first_turn_a_client_has_kept_nothing(place):
    assert place.recall(7, 0) == {}
    assert place.versions(7) == []
    assert not place.folder.exists()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3, dtype=torch.int64),
        torch.zeros(0, 4),
        torch.arange(6.0).view(2, 3).T,
        torch.tensor([[1.5, -0.0, float("inf")]], dtype=torch.float64),
        torch.tensor([True, False]),
        torch.arange(4, dtype=torch.float32, requires_grad=True),
        torch.tensor([1.0, 2.0]).bfloat16(),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_tensors_of_every_kind_come_back_as_they_went(place, tensor):
    place.keep(2, 1, {"a": tensor, "b/c": tensor})

    back = FolderMemory(place.folder).recall(2, 1)

    assert same(back, {"a": tensor.detach(), "b/c": tensor.detach()})


def test_what_is_recalled_is_the_clients_own(place):
    place.keep(1, 1, kept(1))
    place.recall(1, 1)["own"].fill_(9)

    assert same(place.recall(1, 1), kept(1))


def test_nothing_kept_is_kept_too(place):
    """A client whose turn counted must be able to recall that it kept nothing."""
    place.keep(3, 4, {})

    assert place.recall(3, 4) == {}
    assert place.versions(3) == [4]


def test_clients_do_not_see_each_others(place):
    for client in (0, 1, 999, 1000, 1_000_001):
        place.keep(client, 1, kept(client))

    for client in (0, 1, 999, 1000, 1_000_001):
        assert same(place.recall(client, 1), kept(client))
    with pytest.raises(InputError, match="client 5 to have kept"):
        place.recall(5, 1)


def test_a_replayed_turn_reads_the_same_and_replaces_its_own_version(place):
    place.keep(1, 2, kept(2))
    place.keep(1, 5, kept(5), last=2)
    place.keep(1, 5, kept(55), last=2)  # its worker died and it was played again

    assert same(place.recall(1, 2), kept(2))
    assert same(place.recall(1, 5), kept(55))


def test_what_a_refused_turn_kept_is_ignored_and_goes_with_the_next(place):
    place.keep(1, 1, kept(1))
    place.keep(1, 2, kept(2), last=1)  # the server refused this turn
    assert same(place.recall(1, 1), kept(1))

    place.keep(1, 3, kept(3), last=1)

    assert place.versions(1) == [1, 3]


def test_what_a_resumed_run_left_behind_goes_when_it_comes_past(place):
    for number in (1, 2, 3, 4):
        place.keep(1, number, kept(number), last=number - 1, needed=(2,))
    assert same(place.recall(1, 2), kept(2))  # resumed from round 2

    place.keep(1, 3, kept(33), last=2, needed=(2,))
    assert same(place.recall(1, 3), kept(33))
    place.keep(1, 5, kept(5), last=3, needed=(2,))  # it rested in round 4

    assert place.versions(1) == [2, 3, 5]


def test_a_turn_that_was_given_up_and_ends_late_takes_no_newer_version_along(place):
    """The turn of round 4 outlives the wait for it; that of round 5 counts, and so does every one after it."""
    place.keep(1, 3, kept(3))
    place.keep(1, 5, kept(5), last=3, needed=(3, 4))

    place.keep(1, 4, kept(4), last=3, needed=(2, 3))

    assert same(place.recall(1, 5), kept(5))
    place.keep(1, 7, kept(7), last=5, needed=(4, 6))
    assert same(place.recall(1, 3), kept(3))  # of checkpoint 4, for which turn 4 did not count
    assert same(place.recall(1, 5), kept(5))
    assert place.versions(1) == [3, 5, 7]


def test_versions_of_an_earlier_format_are_all_taken_for_counted(place):
    from safetensors.torch import save_file

    for number in (1, 2, 3):
        place.keep(1, number, kept(number), last=number - 1, needed=(1, 2, 3))
        save_file(kept(number), place._file(1, number), metadata={"sha256": digest(kept(number))})

    place.keep(1, 4, kept(4), last=3, needed=(2, 3))

    assert place.versions(1) == [2, 3, 4]


def test_a_version_is_on_the_disk_before_an_older_one_goes(place, synced):
    """The file before its name, the name before the older file; and the folders that are new, up to one that was."""
    place.keep(1, 1, kept(1))
    own = place.folder / "000" / "000001"
    first = [path for path, _ in synced]
    assert first[0].parent == own
    assert first[0].suffix == ".tmp"
    assert first[1:] == [own, own.parent, place.folder, place.folder.parent]
    synced.clear()

    place.keep(1, 2, kept(2), last=1)
    synced.clear()
    there = []
    old = place._prune
    place._prune = lambda *arguments: (there.append([path for path, _ in synced]), old(*arguments))

    place.keep(1, 3, kept(3), last=2)

    (written, beside), (folder, _) = synced
    assert written.suffix == ".tmp"
    assert written in beside
    assert own / "round-00001.safetensors" in beside
    assert folder == own
    assert there == [[written, own]]
    assert place.versions(1) == [2, 3]


@dataclass
class Run:
    """A run as the server sees one client: which round's turn counted, and which checkpoints are there."""

    number: int = 0
    last: int = 0
    checkpoints: dict[int, int] = field(default_factory=lambda: {0: 0})


@settings(max_examples=80, deadline=None)
@given(
    keep=st.integers(1, 3),
    rounds=st.lists(st.sampled_from(["plays", "twice", "refused", "rests", "resumes", "best"]), max_size=25),
)
def test_every_checkpoint_finds_what_it_needs_and_little_else_is_there(tmp_path_factory, keep, rounds):
    """Against a plain model: a dictionary from each kept checkpoint to the client's last turn that counted."""
    place, run, best = FolderMemory(tmp_path_factory.mktemp("memory")), Run(), 0
    values = {0: {}}
    for step, what in enumerate(rounds):
        if what == "resumes":
            run.number = max(run.checkpoints)
            run.last = run.checkpoints[run.number]
            continue
        if what == "best":
            best = run.number
            continue
        number = run.number + 1
        if what != "rests":
            assert same(place.recall(0, run.last), values[run.last])
            # A replayed turn keeps the same; only a refused one is played otherwise later.
            turns = 2 if what == "twice" else 1
            tensors = kept(1000 * number + (step if what == "refused" else run.last))
            for _ in range(turns):
                place.keep(0, number, tensors, last=run.last, needed=tuple(run.checkpoints))
            if what != "refused":
                run.last = number
                values[number] = tensors
        run.number = number
        run.checkpoints[number] = run.last
        wanted = {*sorted(run.checkpoints)[-keep:], best}
        run.checkpoints = {n: last for n, last in run.checkpoints.items() if n in wanted}
        for last in run.checkpoints.values():
            assert same(place.recall(0, last), values[last])
    # One for each checkpoint that was there when the client last played, and its newest two.
    assert len(place.versions(0)) <= keep + 3


DAMAGES = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-2]),
    "another number": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"),
    "no safetensors": lambda file: file.write_bytes(b"PK\x03\x04" * 40),
    "a header of huge length": lambda file: file.write_bytes(b"\xff" * 64),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_made_up(place, damage):
    place.keep(12, 3, kept(3))
    file = place.folder / "000" / "000012" / "round-00003.safetensors"
    assert file.is_file()
    DAMAGES[damage](file)

    with pytest.raises(InputError, match=r"client 12|hash that it states") as caught:
        place.recall(12, 3)
    assert str(file) in str(caught.value)


def test_tensors_of_another_round_under_this_name_are_noticed_by_whoever_wrote_no_hash(place):
    from safetensors.torch import save_file

    place.keep(0, 1, kept(1))
    save_file(kept(1), place.folder / "000" / "000000" / "round-00001.safetensors")

    with pytest.raises(InputError, match="hash"):
        place.recall(0, 1)


def test_a_write_that_is_broken_off_leaves_the_old_file_and_no_rest(place, monkeypatch):
    import safetensors.torch

    place.keep(1, 1, kept(1))

    def break_off(_tensors, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", break_off)
    with pytest.raises(OSError, match="No space"):
        place.keep(1, 1, kept(2))

    assert same(place.recall(1, 1), kept(1))
    assert [file.name for file in place.folder.rglob("*") if file.is_file()] == ["round-00001.safetensors"]


def test_the_digest_tells_names_types_and_shapes_apart():
    zeros = torch.zeros(4)
    different = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.double()},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": zeros.view(2, 2)},
        {"a": zeros, "b": torch.zeros(0)},
        {},
    ]

    assert len({digest(each) for each in different}) == len(different)
    assert digest({"a": zeros, "b": zeros + 1}) == digest({"b": zeros + 1, "a": zeros})


# --- a folder that all machines see ------------------------------------------------------


def test_the_mark_of_a_shared_folder_is_found_and_a_new_one_replaces_it(tmp_path):
    first = mark_shared(tmp_path / "memory")
    check_shared(tmp_path / "memory", first)
    second = mark_shared(tmp_path / "memory")

    check_shared(tmp_path / "memory", second)
    assert len(list((tmp_path / "memory").iterdir())) == 1
    with pytest.raises(InputError, match="visible from all machines"):
        check_shared(tmp_path / "memory", first)


def test_a_folder_of_the_same_name_on_another_disk_is_not_the_shared_one(tmp_path):
    name = mark_shared(tmp_path / "here")
    (tmp_path / "there").mkdir()

    for folder in (tmp_path / "there", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"Choose an --out on a disk that all machines share"):
            check_shared(folder, name)


def test_the_mark_is_nobodys_memory(tmp_path):
    mark_shared(tmp_path)
    place = FolderMemory(tmp_path)
    place.keep(0, 1, kept(1))

    assert place.versions(0) == [1]


# --- the part of the model that is not exchanged -----------------------------------------


def rest_of(values):
    import hashlib

    return hashlib.sha256(values.numpy().tobytes()).hexdigest(), values


def test_a_node_keeps_one_rest_and_knows_it_by_its_digest(tmp_path):
    rest = FolderRest(tmp_path / "memory")
    first, second = rest_of(torch.randn(40)), rest_of(torch.zeros(3))
    assert rest.recall(first[0]) is None

    rest.keep(*first)
    assert torch.equal(FolderRest(tmp_path / "memory").recall(first[0]), first[1])
    assert rest.recall(second[0]) is None
    rest.keep(*second)

    assert torch.equal(rest.recall(second[0]), second[1])
    assert rest.recall(first[0]) is None
    assert len(list((tmp_path / "memory").iterdir())) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_rest_is_none(tmp_path, damage):
    rest = FolderRest(tmp_path)
    name, values = rest_of(torch.randn(40))
    rest.keep(name, values)

    DAMAGES[damage](tmp_path / "rest.safetensors")

    assert rest.recall(name) is None


def test_the_module_says_where_files_lie(tmp_path):
    """Its docstring shows a path; this is it."""
    FolderMemory(tmp_path).keep(123, 12, kept(1))

    assert (tmp_path / "000/000123/round-00012.safetensors").is_file()
    assert "000/000123/round-00012.safetensors" in memory.__doc__


def test_files_of_turns_that_were_killed_while_they_wrote_go(place, tmp_path):
    """One that somebody may still be writing stays."""
    rest = FolderRest(tmp_path / "rest")
    values = torch.zeros(2)
    name = hashlib.sha256(values.numpy().data).hexdigest()
    place.keep(1, 1, kept(1))
    rest.keep(name, values)
    folders = [next(place.folder.rglob("*.safetensors")).parent, tmp_path / "rest"]
    for folder in folders:
        for age, left in ((2 * memory.LEFT_S, "old"), (0.0, "new")):
            (folder / f".{left}.tmp").write_bytes(b"half")
            os.utime(folder / f".{left}.tmp", (time.time() - age,) * 2)
    place.keep(1, 2, kept(2), last=1)
    rest.keep(name, values)

    assert [[path.name for path in folder.glob(".*")] for folder in folders] == [[".new.tmp"]] * 2
    assert same(place.recall(1, 2), kept(2))

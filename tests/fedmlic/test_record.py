"""A run folder survives being killed anywhere, and says clearly what is wrong with it."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmlic import record
from fedmlic.errors import InputError
from fedmlic.record import (
    RunFolder,
    check_new,
    create,
    default_path,
    is_run,
    jsonable,
    open_run,
    read_json,
    write_bytes,
)


@pytest.fixture
def folder(tiny, tmp_path):
    return create(tmp_path / "run", *tiny())


def save(folder, number, value=0.0, **values):
    folder.save_checkpoint(number, {"model/w": torch.full((3,), value), "memory/m": torch.tensor(number)}, values)


def stem(folder, number):
    return folder.path / "checkpoints" / f"round-{number:05d}"


# The folder


def test_settings_come_back_as_they_were(tiny, folder):
    experiment, runtime = tiny()

    assert open_run(folder.path).settings() == (experiment, runtime)
    assert folder.identity() == experiment.identity()
    assert read_json(folder.path / "environment.json")["packages"]["torch"].startswith("2.")


def test_a_run_needs_a_folder_of_its_own(tiny, tmp_path, folder):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match=r"fedmlic resume .*run' or another --out"):
        create(folder.path, *tiny())
    for taken in ("full", "file", "file/below"):
        with pytest.raises(InputError, match="Choose another --out"):
            create(tmp_path / taken, *tiny())
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
    create(tmp_path / "new" / "deep" / "er", *tiny())


def test_a_folder_in_which_a_run_was_killed_at_its_first_breath_can_be_used_again(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".experiment.json.tmp").write_text('{"half')

    check_new(tmp_path / "run")
    create(tmp_path / "run", *tiny())

    assert open_run(tmp_path / "run").settings() == tiny()


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    paths = [create(None, *tiny()).path for _ in range(3)]

    assert len(set(paths)) == 3
    assert all(path.parent.name == "runs" for path in paths)
    assert default_path() not in paths


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["experiment"].update(seed=5), "edited settings"),
        (lambda found: found["experiment"].update(learning_rate=-1), "learning-rate"),
        (lambda found: found["experiment"].update(sede=5), "Did you mean 'seed'"),
        (lambda found: found.pop("experiment"), "to hold settings"),
        (lambda found: found.pop("identity"), "edited settings"),
        (lambda found: found.update(runtime=3), "to hold settings"),
    ],
)
def test_an_edited_experiment_is_not_opened(folder, change, message):
    found = read_json(folder.path / "experiment.json")
    change(found)
    (folder.path / "experiment.json").write_text(json.dumps(found))

    with pytest.raises(InputError, match=message):
        open_run(folder.path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense", "\x00"])
def test_a_damaged_experiment_is_not_opened(folder, text):
    (folder.path / "experiment.json").write_text(text)

    with pytest.raises(InputError, match=r"experiment\.json"):
        open_run(folder.path)


def test_bytes_that_are_no_text_are_damage_too(folder):
    (folder.path / "experiment.json").write_bytes(b"\xff\xfe{}")

    with pytest.raises(InputError, match="damaged"):
        open_run(folder.path)


def test_of_two_runs_that_start_at_once_in_one_folder_one_comes_first(tiny, tmp_path, monkeypatch):
    """Both find the folder new, and only then go on."""
    both, made, told = threading.Barrier(2), [], []
    check, looked = record.check_new, threading.local()

    def check_together(path):
        check(path)
        if not getattr(looked, "once", False):
            looked.once = True
            both.wait(30)

    monkeypatch.setattr(record, "check_new", check_together)

    def start(seed):
        try:
            made.append(create(tmp_path / "run", *tiny(seed=seed)))
        except InputError as error:
            told.append(str(error))

    threads = [threading.Thread(target=start, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(made) == 1
    assert len(told) == 1
    assert "to be new or empty" in told[0] or "another process is running" in told[0]
    assert open_run(tmp_path / "run").settings() == made[0].settings()


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="names of files are text there")
def test_a_folder_whose_name_is_not_utf_8_is_refused_before_it_is_made(tiny, tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff")

    with pytest.raises(InputError, match=r"to be UTF-8, got '.*bad\\udcff'"):
        create(path, *tiny())
    assert not path.exists()


def test_something_else_is_no_run(tmp_path):
    assert not is_run(tmp_path)
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="the folder of a run"):
            open_run(path)


# Events


def test_events_are_told_and_kept_and_numbers_that_are_none_become_null(folder):
    heard = []
    folder.listeners.append(lambda kind, values: heard.append((kind, dict(values))))

    folder.event("round", {"round": 1, "loss": float("nan"), "value": torch.tensor(2.5)})

    assert list(folder.events()) == [{"event": "round", "round": 1, "loss": None, "value": 2.5}]
    assert heard[0][0] == "round"


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of file sizes")
def test_events_for_which_there_is_no_room_leave_nothing_and_the_next_is_whole(folder):
    """The kernel takes the part that fits, as on a disk that is nearly full."""
    folder.event("round", {"round": 1})
    code = (
        "import resource, signal, sys; from pathlib import Path; from fedmlic.record import open_run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder = open_run(Path(sys.argv[1]))\n"
        "size = folder.events_path.stat().st_size + 40\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "try:\n    folder.add_events('round', [{'round': 2}, {'round': 3, 'text': 'x' * 200}])\n"
        "except OSError as error:\n    print(type(error).__name__)\n"
        "folder.event('failed', {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder.path], capture_output=True, text=True, check=True)

    assert done.stdout == "OSError\n"
    found = [(event["event"], event.get("round")) for event in folder.events()]
    assert found == [("round", 1), ("failed", None)]


def test_a_half_written_last_line_is_not_an_event(folder):
    folder.event("a", {"n": 1})
    with folder.events_path.open("a") as log:
        log.write('{"event":"b","n')

    assert [event["event"] for event in folder.events()] == ["a"]


@pytest.mark.parametrize("damage", [b"\x00\x00\n", b"{]\n", b"\xff\xff\n"])
def test_damaged_bytes_are_named(folder, damage, caplog):
    folder.event("a", {"n": 1})
    with folder.events_path.open("ab") as log:
        log.write(damage)

    assert len(list(folder.events())) == 1
    assert "line 2 of" in caplog.text


def test_tables_have_one_row_per_round_client_and_label(folder):
    import pandas as pd

    for number in (1, 2):
        folder.event("client", {"round": number, "client": 7, "loss": 0.5})
        folder.event("labels", {"round": number, "split": "test", "label": ["x", "y"], "ap": [0.25, None]})
        folder.event("round", {"round": number, "loss": 0.5})
    folder.event("end", {})

    folder.write_tables()

    tables = {name: pd.read_parquet(folder.path / f"{name}.parquet") for name in ("rounds", "clients", "labels")}
    assert tables["rounds"]["round"].tolist() == [1, 2]
    assert tables["clients"]["client"].tolist() == [7, 7]
    assert tables["labels"]["label"].tolist() == ["x", "y", "x", "y"]
    assert tables["labels"]["ap"].isna().tolist() == [False, True, False, True]
    assert not list(folder.path.glob(".*.tmp"))


# Checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(folder):
    folder.event("round", {"round": 1})
    tensors = {"model/w": torch.tensor([1.5, -0.0, 2.0**-149]), "memory/n": torch.tensor(3, dtype=torch.int64)}
    whole = torch.arange(8.0)
    views = {"model/a": whole[:4].view(2, 2), "model/b": whole[4:]}

    folder.save_checkpoint(3, {**tensors, **views}, {"best_value": None})
    found, values = folder.load_checkpoint(3)

    for name, tensor in {**tensors, **views}.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert values["events_bytes"] == folder.events_path.stat().st_size
    assert (values["round"], values["best_value"]) == (3, None)


def test_only_complete_checkpoints_count(folder):
    assert folder.checkpoints() == []
    for number in (1, 2, 10):
        save(folder, number)
    stem(folder, 11).with_suffix(".safetensors").write_bytes(b"tensors without manifest")
    (folder.path / "checkpoints" / ".round-00012.json.tmp").write_text("{")
    (folder.path / "checkpoints" / "round-notes.json").write_text("{}")

    assert folder.checkpoints() == [1, 2, 10]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_and_the_best_are_kept(folder, keep):
    for number in range(1, 8):
        save(folder, number)
        folder.prune_checkpoints(keep, best=2 if number > 1 else 0)

    last = set(range(8 - keep, 8))
    assert set(folder.checkpoints()) == last | {2}
    assert {int(file.stem[6:]) for file in folder.checkpoint_folder.glob("*.safetensors")} == last | {2}


def damage_tensors(folder):
    file = stem(folder, 1).with_suffix(".safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def rename(folder):
    for suffix in (".safetensors", ".json"):
        shutil.copy(stem(folder, 2).with_suffix(suffix), stem(folder, 1).with_suffix(suffix))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_tensors, "Delete both files and resume"),
        (lambda f: stem(f, 1).with_suffix(".safetensors").unlink(), "Delete both files and resume"),
        (lambda f: stem(f, 1).with_suffix(".safetensors").write_bytes(b""), "Delete both files and resume"),
        (lambda f: stem(f, 1).with_suffix(".json").write_text('{"sha'), "damaged content"),
        (lambda f: stem(f, 1).with_suffix(".json").write_text("{}"), "belong to this run's experiment"),
        (rename, "Delete both files and resume"),
    ],
)
def test_a_damaged_checkpoint_is_not_loaded(folder, damage, message):
    save(folder, 1, 1.0)
    save(folder, 2, 2.0)

    damage(folder)

    with pytest.raises(InputError, match=message):
        folder.load_checkpoint(1)
    assert folder.load_checkpoint(2)[0]["model/w"].tolist() == [2, 2, 2]


def test_a_checkpoint_of_another_experiment_is_not_loaded(folder, tiny, tmp_path):
    other = create(tmp_path / "other", *tiny(seed=1))
    save(other, 1)
    shutil.copytree(other.checkpoint_folder, folder.checkpoint_folder)

    with pytest.raises(InputError, match="belong to this run's experiment"):
        folder.load_checkpoint(1)


def test_a_pickle_is_never_opened(folder):
    import hashlib
    import pickle

    save(folder, 1)
    data = pickle.dumps({"model/w": 1})
    stem(folder, 1).with_suffix(".safetensors").write_bytes(data)
    manifest = read_json(stem(folder, 1).with_suffix(".json"))
    manifest["sha256"] = hashlib.sha256(data).hexdigest()
    record.write_json(stem(folder, 1).with_suffix(".json"), manifest)

    with pytest.raises(InputError, match="safetensors"):
        folder.load_checkpoint(1)


# Rewinding


def test_rewinding_cuts_the_log_and_clears_what_is_half_written(folder):
    folder.event("round", {"round": 1})
    save(folder, 1)
    length = folder.events_path.stat().st_size
    folder.event("round", {"round": 2})
    stem(folder, 2).with_suffix(".safetensors").write_bytes(b"half")
    (folder.checkpoint_folder / ".round-00002.json.tmp").write_text("{")
    (folder.path / ".result.json.tmp").write_text("{")

    folder.rewind(length)

    assert [event["round"] for event in folder.events()] == [1]
    assert sorted(file.name for file in folder.checkpoint_folder.iterdir()) == [
        "round-00001.json",
        "round-00001.safetensors",
    ]
    assert not (folder.path / ".result.json.tmp").exists()


def test_a_log_that_lost_events_is_not_padded_with_zeros(folder):
    folder.event("round", {"round": 1})
    length = folder.events_path.stat().st_size
    folder.events_path.write_text("")

    folder.rewind(length)
    assert f"the {length} bytes" in folder.damage[0]
    folder.events_path.unlink()
    folder.rewind(length)
    assert "got no such file" in folder.damage[1]
    assert not folder.events_path.exists()
    folder.rewind(0)
    assert len(folder.damage) == 2


def test_a_log_that_is_shorter_goes_on_after_its_last_whole_line(folder):
    folder.event("round", {"round": 1})
    length = folder.events_path.stat().st_size
    folder.event("round", {"round": 2})
    whole = folder.events_path.read_bytes()
    folder.events_path.write_bytes(whole[: length + 5])

    folder.rewind(len(whole))
    folder.event("round", {"round": 3})

    assert [event["round"] for event in folder.events()] == [1, 3]


@pytest.mark.parametrize("line", ["{rubbish", "3", '{"round": 2}', '{"event": 7}', "[" * 100_000, "\ud800"])
def test_a_damaged_line_is_skipped_and_named_once(folder, line, caplog):
    folder.event("round", {"round": 1})
    with folder.events_path.open("a", encoding="utf-8", errors="surrogatepass") as log:
        log.write(line + "\n")
    folder.event("round", {"round": 3})

    for _ in range(2):
        assert [event["round"] for event in folder.events()] == [1, 3]
    assert len(folder.tables()["rounds"]) == 2
    assert [f"line 2 of {folder.events_path}" in record.getMessage() for record in caplog.records] == [True]


def damage_manifest(folder, number):
    file = stem(folder, number).with_suffix(".json")
    file.write_text(file.read_text().replace('"events_bytes": ', '"events_bytes": 1'))


DAMAGES = {
    "tensors": lambda folder, number: stem(folder, number).with_suffix(".safetensors").write_bytes(b"rubbish"),
    "no tensors": lambda folder, number: stem(folder, number).with_suffix(".safetensors").unlink(),
    "a manifest that is no JSON": lambda folder, number: stem(folder, number).with_suffix(".json").write_text("{"),
    "an empty manifest": lambda folder, number: stem(folder, number).with_suffix(".json").write_text("{}"),
    "a number in the manifest": damage_manifest,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_sound_checkpoint_is_found_and_nothing_is_lost(folder, damage):
    for number in (1, 2, 3):
        save(folder, number, float(number))
    for number in (2, 3):
        DAMAGES[damage](folder, number)

    tensors, values = folder.newest_checkpoint()

    assert (values["round"], tensors["model/w"].tolist()) == (1, [1, 1, 1])
    assert folder.checkpoints() == [1]
    assert ["round 3" in text or "round 2" in text for text in folder.damage] == [True, True]
    left = sorted(file.name for file in folder.checkpoint_folder.glob("*.damaged"))
    assert left[0] == "round-00002.json.damaged"
    assert len(left) == (2 if damage == "no tensors" else 4)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_checkpoint_that_the_disk_does_not_give_back_is_gone_around(folder, monkeypatch, suffix):
    for number in (1, 2):
        save(folder, number, value=float(number))

    def failing(real):
        def read(path, *arguments, **options):
            if path.name == f"round-00002{suffix}":
                raise OSError(5, "Input/output error")
            return real(path, *arguments, **options)

        return read

    with monkeypatch.context() as patched:
        for name in ("read_bytes", "read_text"):
            patched.setattr(record.Path, name, failing(getattr(record.Path, name)))
        tensors, values = folder.newest_checkpoint()

    assert values["round"] == 1
    assert tensors["model/w"].tolist() == [1.0] * 3
    assert "Input/output error" in folder.damage[0]
    assert (folder.path / "checkpoints" / f"round-00002{suffix}.damaged").exists()


def test_without_any_sound_checkpoint_the_run_does_not_start_again_by_itself(folder):
    assert folder.newest_checkpoint() is None
    save(folder, 1)
    DAMAGES["tensors"](folder, 1)

    with pytest.raises(InputError, match="got 1 damaged ones"):
        folder.newest_checkpoint()
    assert folder.checkpoints() == [1]


# Small files


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_bytes(file, b"old")
    monkeypatch.setattr(record.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))

    with pytest.raises(OSError, match="disk full"):
        write_bytes(file, b"new")

    assert file.read_bytes() == b"old"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(json_values)
def test_everything_becomes_strict_json(value):
    text = json.dumps(jsonable(value), allow_nan=False)

    assert jsonable(json.loads(text)) == json.loads(text)


def test_a_run_folder_can_be_moved(folder, tmp_path):
    save(folder, 1, 4.0)
    folder.path.rename(tmp_path / "elsewhere")

    moved = open_run(tmp_path / "elsewhere")

    assert isinstance(moved, RunFolder)
    assert moved.load_checkpoint(1)[0]["model/w"].tolist() == [4, 4, 4]

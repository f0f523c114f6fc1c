"""Builds that are interrupted, killed or meet bad files: what is kept, and that the bytes do not show it."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic import pixels as module
from fedmlic.corpus import load_corpus, open_corpus
from fedmlic.dataset import DIFFICULT_ONLY, Dataset, Flags, Objects, Table
from fedmlic.errors import InputError

NUM_IMAGES = 50
GIGA = {"raw": 40.0, "jpeg": 0.0}
every_storage = pytest.mark.parametrize("storage", GIGA)


def toy(bad=(), drawn=None, same=(), num_images=NUM_IMAGES):
    """A data set whose pixels say which row they are; rows ``bad`` cannot be read, rows ``same`` look like row 0."""
    rng = np.random.default_rng(1)
    labels = rng.integers(-2, 2, (num_images, 3)).astype(np.int8)
    row, label = np.nonzero(labels == 1)
    objects = Objects(row, label.astype(np.int16), np.ones((len(row), 4), np.float32), row.astype(np.float32))
    flags = Flags(row, label.astype(np.int16), np.full(len(row), DIFFICULT_ONLY, np.uint8))
    splits = rng.choice(["train", "val", "test"], num_images).tolist()
    owners = rng.integers(-1, 9, num_images)
    ids = [f"i{number:03}" for number in rng.permutation(num_images)]
    sources = [f"/data/{name}.png" for name in ids]
    names = [f"owner {number}" for number in range(9)]
    table = Table(ids, splits, labels, owners, objects, sources, names, {}, flags)

    def image(row):
        if drawn is not None:
            drawn.append(row)
        if row in bad:
            msg = f"{sources[row]} is broken"
            raise InputError(msg)
        number = 0 if row in same else row
        return np.random.default_rng(number).integers(0, 255, (8, 9, 3)).astype(np.uint8)

    return Dataset("toy", "1", {"images": num_images}, ("a", "b", "c"), (8, 9, 3), lambda: table, image)


def digests(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def interrupt_after(rows):
    """A progress callback that behaves like Ctrl-C once so many rows are done."""

    def progress(done, _total):
        if done >= rows:
            raise KeyboardInterrupt

    return progress


def left_behind(home):
    return [path.name for path in (home / "corpora" / "toy").iterdir() if path.suffix == ".tmp"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_IMAGES", 4)


# Interrupted builds


@every_storage
@pytest.mark.parametrize("rows", [1, 20, NUM_IMAGES])
def test_an_interrupted_build_goes_on_and_its_bytes_do_not_show_it(tmp_path, storage, rows):
    whole = open_corpus(toy(), home=tmp_path / "whole", max_raw_gb=GIGA[storage])
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), home=tmp_path, max_raw_gb=GIGA[storage], progress=interrupt_after(rows), workers=2)
    drawn, calls = [], []

    again = open_corpus(
        toy(drawn=drawn), home=tmp_path, max_raw_gb=GIGA[storage], progress=lambda *call: calls.append(call)
    )

    first = -(-rows // 4) * 4 if rows < NUM_IMAGES else NUM_IMAGES
    assert calls[0] == (first, NUM_IMAGES)
    assert calls[-1] == (NUM_IMAGES, NUM_IMAGES)
    assert len(drawn) == NUM_IMAGES - first
    assert digests(again.path) == digests(whole.path)
    assert left_behind(tmp_path) == []


def test_many_interruptions_add_up(tmp_path):
    whole = open_corpus(toy(), home=tmp_path / "whole")
    drawn = []
    for rows in range(4, NUM_IMAGES, 4):
        with pytest.raises(KeyboardInterrupt):
            open_corpus(toy(drawn=drawn), home=tmp_path, progress=interrupt_after(rows), workers=1)

    again = open_corpus(toy(drawn=drawn), home=tmp_path)

    assert set(drawn) == set(range(NUM_IMAGES))
    assert digests(again.path) == digests(whole.path)


PROGRAM = """
import runpy, sys, time
from pathlib import Path
from fedmlic import pixels
from fedmlic.corpus import open_corpus
pixels.CHECKPOINT_S, pixels.BLOCK_IMAGES = 0.0, 4
toy = runpy.run_path(sys.argv[1])["toy"]
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.05)
open_corpus(toy(bad=[3]), Path(sys.argv[2]), progress, 2, float(sys.argv[3]), bad_files="skip", max_bad_fraction=0.1)
"""


@every_storage
def test_a_killed_build_goes_on_and_its_bytes_do_not_show_it(tmp_path, storage):
    options = {"max_raw_gb": GIGA[storage], "bad_files": "skip", "max_bad_fraction": 0.1}
    whole = open_corpus(toy(bad=[3]), home=tmp_path / "whole", **options)
    command = [sys.executable, "-c", PROGRAM, __file__, str(tmp_path), str(GIGA[storage])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for _ in range(4):
            done = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    drawn = []

    again = open_corpus(toy(bad=[3], drawn=drawn), home=tmp_path, **options)

    assert process.returncode != 0
    assert len(set(drawn) - {3}) <= NUM_IMAGES - done + 4
    assert digests(again.path) == digests(whole.path)
    assert left_behind(tmp_path) == []


def test_a_build_that_was_killed_while_the_manifest_was_written_draws_nothing_again(tmp_path, monkeypatch):
    whole = open_corpus(toy(), home=tmp_path / "whole")
    monkeypatch.setattr("fedmlic.corpus.sync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), home=tmp_path)
    monkeypatch.undo()
    drawn = []

    again = open_corpus(toy(drawn=drawn), home=tmp_path)

    assert drawn == []
    assert digests(again.path) == digests(whole.path)


def journal(home):
    return next((home / "corpora" / "toy").glob(".*.tmp")) / module.JOURNAL


SPOILED = {
    "no journal": lambda path: path.unlink(),
    "half a journal": lambda path: os.truncate(path, 20),
    "another maker": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "maker": "x"})),
    "pixels cut": lambda path: os.truncate(path.parent / "corpus" / "images.u8.npy", 500),
    "records cut": lambda path: os.truncate(path.parent / module.RECORDS, 16),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_the_journal_cannot_vouch_for_is_drawn_again(tmp_path, spoil):
    whole = open_corpus(toy(), home=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), home=tmp_path, progress=interrupt_after(20))
    spoil(journal(tmp_path))
    drawn = []

    again = open_corpus(toy(drawn=drawn), home=tmp_path)

    assert sorted(drawn) == list(range(NUM_IMAGES))
    assert digests(again.path) == digests(whole.path)


@pytest.fixture
def silent(monkeypatch):
    """A context in which nothing is noted in the journal: what a kill within five seconds leaves."""

    @contextlib.contextmanager
    def killed():
        with monkeypatch.context() as patch:
            patch.setattr(module._Files, "_note", lambda _: None)
            with pytest.raises(KeyboardInterrupt):
                yield

    return killed


def test_an_old_journal_never_vouches_for_new_pixels(tmp_path, silent):
    """A is killed, B begins in the same place and is killed before its first entry, then A goes on."""
    whole = open_corpus(toy(), home=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), out=tmp_path / "mine", progress=interrupt_after(20))
    with silent():
        open_corpus(replace(toy(same=range(50)), version="2"), out=tmp_path / "mine", progress=interrupt_after(40))

    assert digests(open_corpus(toy(), out=tmp_path / "mine").path) == digests(whole.path)


def test_going_back_to_a_mended_row_is_noted_before_anything_is_written(tmp_path, silent):
    """The row is broken again when the build after the kill looks at it."""
    options = {"bad_files": "skip", "max_bad_fraction": 0.1}
    partial = open_corpus(toy(bad=[3]), home=tmp_path / "partial", **options)
    with pytest.raises(InputError, match="got 1 problem"):
        open_corpus(toy(bad=[3]), home=tmp_path, keep_failed=True)
    with silent():
        open_corpus(toy(), home=tmp_path, progress=interrupt_after(NUM_IMAGES))

    assert digests(open_corpus(toy(bad=[3]), home=tmp_path, **options).path) == digests(partial.path)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    whole = open_corpus(toy(), home=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), home=tmp_path, progress=interrupt_after(20))
    with monkeypatch.context() as patch:
        patch.setattr("fedmlic.corpus.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
        with pytest.raises(InputError, match="GB free"):
            open_corpus(toy(), home=tmp_path)
    drawn = []

    again = open_corpus(toy(drawn=drawn), home=tmp_path)

    assert len(drawn) < NUM_IMAGES
    assert digests(again.path) == digests(whole.path)


@given(size=st.integers(1, 4000), num_images=st.integers(0, 10**7))
@settings(max_examples=30, deadline=None)
def test_blocks_are_bounded_and_headers_equally_long(size, num_images):
    plan = module.Plan(Path(), Path(), (num_images, size, size, 3), "raw", "", lambda *_: None, 1)

    assert 1 <= plan.block <= module.BLOCK_IMAGES
    assert plan.block == 1 or plan.block * size * size * 3 <= module.BLOCK_BYTES
    assert len(plan.header(0)) == len(plan.header(num_images))


# Bad files


@every_storage
def test_skipped_rows_are_recorded_and_everything_follows(tmp_path, storage):
    bad = {0, 7, 8, 31, 49}
    table = toy().table()
    rank = {"train": 0, "val": 1, "test": 2}
    order = [
        row
        for row in sorted(range(50), key=lambda i: (rank[table.splits[i]], table.owners[i], table.image_ids[i]))
        if row not in bad
    ]

    corpus = open_corpus(toy(bad=bad), home=tmp_path, max_raw_gb=GIGA[storage], bad_files="skip", max_bad_fraction=0.1)

    rows = np.arange(45)
    expected = np.stack([toy().image(row) for row in order])
    assert corpus.image_ids == [table.image_ids[row] for row in order]
    assert corpus.images.take(rows).shape == expected.shape
    assert storage == "jpeg" or (corpus.images.take(rows) == expected).all()
    assert (corpus.labels.take(rows) == table.labels[order]).all()
    assert sum(map(len, corpus.splits.values())) == 45
    assert [order[row] for row in corpus.objects.row] == [
        r for r in order for _ in np.flatnonzero(table.objects.row == r)
    ]
    assert len(corpus.flags.row) == (table.labels[order] == 1).sum()
    assert corpus.manifest["left_out"] == 5
    found = corpus.manifest["report"]["bad_files"]
    assert found["count"] == 5
    assert found["images"] == {table.image_ids[row]: f"{table.image_ids[row]} is broken" for row in bad}
    assert corpus.key.endswith("-partial")
    assert load_corpus(corpus.path).key == corpus.key


def test_an_owner_who_lost_every_image_leaves_no_gap(tmp_path):
    table = toy().table()
    bad = np.flatnonzero(table.owners == 4).tolist()

    corpus = open_corpus(toy(bad=bad), home=tmp_path, bad_files="skip", max_bad_fraction=0.5)

    names = [corpus.owner_names[owner] if owner >= 0 else None for owner in corpus.owners.tolist()]
    of_id = dict(zip(table.image_ids, table.owners.tolist(), strict=True))
    assert sorted(set(corpus.owners.tolist()) - {-1}) == list(range(8))
    assert names == [f"owner {of_id[i]}" if of_id[i] >= 0 else None for i in corpus.image_ids]


def test_skipping_nothing_is_the_ordinary_corpus(tmp_path):
    ordinary = open_corpus(toy(), home=tmp_path / "a")
    skipping = open_corpus(toy(), home=tmp_path / "b", bad_files="skip")

    assert skipping.key == ordinary.key
    assert digests(skipping.path) == digests(ordinary.path)


def test_a_partial_corpus_never_stands_for_the_whole(tmp_path):
    options = {"bad_files": "skip", "max_bad_fraction": 0.1}
    partial = open_corpus(toy(bad=[3]), home=tmp_path, **options)
    with pytest.raises(InputError, match="got 1 problem"):
        open_corpus(toy(bad=[3]), home=tmp_path)
    drawn = []
    assert open_corpus(toy(drawn=drawn), home=tmp_path, **options).path == partial.path
    assert drawn == []

    whole = open_corpus(toy(), home=tmp_path)

    assert whole.num_images == partial.num_images + 1
    assert open_corpus(toy(), home=tmp_path, **options).path == whole.path


def test_too_many_bad_files_are_refused_with_all_of_them(tmp_path):
    with pytest.raises(InputError, match=r"Expected at most 10\.00% of 50 images") as caught:
        open_corpus(toy(bad=range(6)), home=tmp_path, bad_files="skip", max_bad_fraction=0.1)
    assert len(caught.value.problems) == 6
    with pytest.raises(InputError, match="got 50 problems"):
        open_corpus(toy(bad=range(50)), home=tmp_path, bad_files="skip", max_bad_fraction=1)


def test_a_partial_corpus_is_not_opened_where_less_may_be_missing(tmp_path):
    corpus = open_corpus(toy(bad=[1, 2, 3]), home=tmp_path, bad_files="skip", max_bad_fraction=0.06)

    with pytest.raises(InputError, match=r"at most 5\.00% of 50 images .* got 3 problems") as caught:
        open_corpus(toy(bad=[1, 2, 3]), home=tmp_path, bad_files="skip", max_bad_fraction=0.05)

    assert set(caught.value.problems) == {
        f"{i}: {i} is broken" for i in corpus.manifest["report"]["bad_files"]["images"]
    }
    assert corpus.path.exists()


def test_what_was_drawn_before_a_failure_is_kept_if_asked(tmp_path):
    with pytest.raises(InputError, match="got 2 problems"):
        open_corpus(toy(bad=[3, 17]), home=tmp_path, keep_failed=True)
    drawn = []

    corpus = open_corpus(toy(bad=[3, 17], drawn=drawn), home=tmp_path, bad_files="skip", max_bad_fraction=0.1)

    fresh = open_corpus(toy(bad=[3, 17]), home=tmp_path / "b", bad_files="skip", max_bad_fraction=0.1)
    assert sorted(drawn) == [3, 17]
    assert digests(corpus.path) == digests(fresh.path)


@every_storage
def test_files_that_can_be_read_again_are_put_where_they_belong(tmp_path, storage):
    whole = open_corpus(toy(), home=tmp_path / "whole", max_raw_gb=GIGA[storage])
    with pytest.raises(InputError, match="got 3 problems"):
        open_corpus(toy(bad=[3, 17, 30]), home=tmp_path, max_raw_gb=GIGA[storage], keep_failed=True)
    with pytest.raises(InputError, match="got 1 problem"):
        open_corpus(toy(bad=[17]), home=tmp_path, max_raw_gb=GIGA[storage], keep_failed=True)

    mended = open_corpus(toy(), home=tmp_path, max_raw_gb=GIGA[storage])

    assert digests(mended.path) == digests(whole.path)


# Duplicates


def test_equal_pixels_under_two_ids_are_counted(tmp_path):
    table = toy().table()
    same = [0, 5, 9]
    corpus = open_corpus(toy(same=same), home=tmp_path)

    found = corpus.manifest["report"]["duplicates"]
    assert (found["groups"], found["images"]) == (1, 3)
    assert sorted(found["examples"][0]) == sorted(table.image_ids[row] for row in same)
    assert found["groups_across_splits"] == (len({table.splits[row] for row in same}) > 1)
    assert "duplicates" not in open_corpus(toy(), home=tmp_path / "b").manifest["report"]


# One folder of your choice


def test_a_corpus_is_written_to_exactly_the_folder_asked_for(tmp_path):
    usual = open_corpus(toy(), home=tmp_path / "home")
    out = tmp_path / "new" / "mine"

    corpus = open_corpus(toy(), out=out)
    drawn = []
    again = open_corpus(toy(drawn=drawn), out=out)

    assert corpus.path == again.path == out
    assert drawn == []
    assert digests(out) == digests(usual.path)
    assert sorted(path.name for path in out.parent.iterdir()) == [".mine.lock", "mine"]


def test_an_empty_folder_is_filled_and_anything_else_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert open_corpus(toy(), out=tmp_path / "empty").path == tmp_path / "empty"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")

    for name in ("other", "file"):
        with pytest.raises(InputError, match=r"to be new, or to hold this corpus, got something else"):
            open_corpus(toy(), out=tmp_path / name)
    with pytest.raises(InputError, match=r"got the corpus \w+ of data set toy. Choose another folder"):
        open_corpus(toy(num_images=20), out=tmp_path / "empty")
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_an_interrupted_build_of_a_chosen_folder_goes_on(tmp_path):
    whole = open_corpus(toy(), home=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), out=tmp_path / "mine", progress=interrupt_after(20))
    assert not (tmp_path / "mine").exists()
    drawn = []

    corpus = open_corpus(toy(drawn=drawn), out=tmp_path / "mine")

    assert 0 < len(drawn) < NUM_IMAGES
    assert digests(corpus.path) == digests(whole.path)


def test_another_data_set_does_not_go_on_with_what_lies_there(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_corpus(toy(), out=tmp_path / "mine", progress=interrupt_after(20))

    other = replace(toy(), version="2")

    assert open_corpus(other, out=tmp_path / "mine").num_images == NUM_IMAGES

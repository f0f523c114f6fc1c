"""Tables of labels are small in the log, and come back as they were."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.label_events import PACKED, Packer, Unpacker, listed
from fedmlic.record import create

SHARES = st.one_of(st.floats(0, 1, width=32), st.just(math.nan))


def event_of(number, names, shares, split="test", **others):
    columns = dict(zip(PACKED, shares, strict=True))
    counts = {"num_present": [1] * len(names), "num_known": [2] * len(names)}
    return {"round": number, "split": split, "label": list(names), **others, **counts, **columns}


def through_json(values):
    return {"event": "labels", **json.loads(json.dumps(values))}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_events_come_back_bit_for_bit(data):
    names = data.draw(st.lists(st.text(max_size=5), min_size=1, max_size=6))
    packer, unpacker = Packer(), Unpacker()
    for number in range(1, data.draw(st.integers(2, 4))):
        shares = [data.draw(st.lists(SHARES, min_size=len(names), max_size=len(names))) for _ in PACKED]
        split = data.draw(st.sampled_from(["test", "val"]))
        annotated = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
        values = event_of(number, names, shares, split, annotated=annotated)

        found = unpacker.unpack(through_json(packer.pack(values)))

        assert found["event"] == "labels"
        assert {name: found[name] for name in ("round", "split", "label", "annotated", "num_known")} == {
            name: values[name] for name in ("round", "split", "label", "annotated", "num_known")
        }
        for name in PACKED:
            np.testing.assert_array_equal(found[name], np.asarray(values[name], dtype=np.float32))


def test_what_does_not_change_is_written_once_per_split():
    packer = Packer()
    first, second, other = (
        packer.pack(event_of(number, ["a", "b"], [[0.5, 0.25]] * 4, split))
        for number, split in ((1, "test"), (2, "test"), (2, "val"))
    )
    changed = packer.pack({**event_of(3, ["a", "b"], [[0.5, 0.25]] * 4), "num_present": [2, 2]})

    assert "label" in first
    assert set(second) == {"round", "split", "packed"}
    assert "label" in other
    assert changed["num_present"] == [2, 2]
    assert changed["label"] == ["a", "b"]


def test_lists_of_earlier_versions_are_read_as_they_are():
    old = {"event": "labels", "round": 1, "split": "test", "label": ["a", "b"], "ap": [0.123456789012345, None]}

    assert Unpacker().unpack(old) == old
    assert listed(old) == old


def test_undefined_numbers_are_none_in_lists():
    packed = Packer().pack(event_of(1, ["a", "b"], [[0.5, math.nan]] * 4))

    assert listed(Unpacker().unpack(through_json(packed)))["ap"] == [0.5, None]


@pytest.mark.parametrize(
    "text", ["", "!", "AAAA", "eJwDAAAAAAE=", None], ids=["empty", "no-base64", "no-zlib", "too-short", "none"]
)
def test_damage_is_told(text):
    packed = through_json(Packer().pack(event_of(1, ["a", "b"], [[0.5, 0.25]] * 4)))
    packed["packed"]["float32"] = text

    assert Unpacker().unpack(packed) is None


def test_an_event_whose_names_are_lost_is_skipped_and_named(tiny, tmp_path, caplog):
    folder = create(tmp_path / "run", *tiny())
    for number in (1, 2):
        folder.event("labels", event_of(number, ["a", "b"], [[0.5, 0.25]] * 4))
    lines = folder.events_path.read_text().splitlines()
    folder.events_path.write_text("rubbish\n" + lines[1] + "\n")

    assert list(folder.events()) == []
    assert "line 2 of" in caplog.text


def test_after_a_cut_the_names_are_written_again(tiny, tmp_path):
    folder = create(tmp_path / "run", *tiny())
    folder.event("labels", event_of(1, ["a", "b"], [[0.5, 0.25]] * 4))

    folder.rewind(0)
    folder.event("labels", event_of(1, ["a", "b"], [[0.25, 0.5]] * 4))

    assert [event["ap"] for event in folder.events("labels")] == [[0.25, 0.5]]


def test_thousands_of_labels_over_hundreds_of_rounds_stay_small(tiny, tmp_path):
    """FLAIR's 1,628 fine labels: two splits and 500 rounds must be under 30 MB of log and 20 MB of table."""
    rng, num_labels, num_rounds = np.random.default_rng(0), 1628, 3
    names = [f"label number {place}" for place in range(num_labels)]
    skill = rng.beta(0.5, 4, num_labels)
    folder = create(tmp_path / "run", *tiny())
    as_lists = 0
    for number in range(1, num_rounds + 1):
        for split in ("val", "test"):
            ap = np.clip(skill * (1 + 0.05 * rng.normal(size=num_labels)), 0, 1)
            predicted = rng.random(num_labels) < 0.5
            shares = [np.where(predicted, rng.integers(0, 40, num_labels) / 40, 0.0) for _ in range(3)]
            values = event_of(number, names, [column.tolist() for column in (ap, *shares)], split)
            as_lists += len(json.dumps(values, separators=(",", ":")))
            folder.event("labels", values)

    size = folder.events_path.stat().st_size
    once = 2 * len(json.dumps(names)) + 4 * 5 * num_labels
    folder.write_tables()

    assert (size - once) / num_rounds * 500 < 30e6
    assert size < as_lists / 2
    assert (folder.path / "labels.parquet").stat().st_size / num_rounds * 500 < 20e6
    table = folder.tables()["labels"]
    assert len(table) == num_rounds * 2 * num_labels
    assert table["label"].tolist()[:num_labels] == names

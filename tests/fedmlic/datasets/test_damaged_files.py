"""Whatever is done to an annotation file, a reader reads it or explains what is wrong: nothing else comes out."""

import json
import random
import runpy
from pathlib import Path

import pytest

from fedmlic.corpus import corpus_key
from fedmlic.errors import InputError
from fedmlic.spec import build

FIXTURES = Path(__file__).parents[2] / "fixtures"
VALUES = [None, True, False, 0, -1, 1.5, 1e300, 10**400, float("nan"), float("inf"), [], [None], {}, {"id": 1}]
VALUES += ["", " ", "1", "None", "a\0b", "\ud800", "../../x", "x" * 5000, "9" * 5000]
BYTES = [b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"'", b",", b"\n", b"\r", b"[", b"}", b"<", b"&", b"\\", b"9" * 5000]
READERS = {
    "coco2014": ("", "*.json"),
    "coco_mlt": ("", "*.[jp][sk]*"),
    "lvis": ("", "*.json"),
    "voc2007": ("", "*.[xt][mx]*"),
    "voc_mlt": ("", "img_id.txt"),
    "visual_genome": ("", "*.[jt][sx]*"),
    "visual_genome of the released lists": (", labels='vg200', coco='drop'", "*.[jt][sx]*"),
    "open_images": ("", "*.[ctj][sx]*"),
    "open_images with a hierarchy": (", classes='trainable', hierarchy='expand'", "*.[ctj][sx]*"),
}
"""Options beside those of the fixture, and which files are damaged."""
ROUNDS = 14


def damaged(content, suffix, rng):
    """The bytes of a file after one change."""
    if suffix == ".json" and rng.random() < 0.7:
        return damaged_json(json.loads(content), rng)
    place = rng.randrange(len(content) + 1)
    end = min(place + rng.choice([1, 3, 20, 10**9]), len(content))
    return {
        "cut": lambda: content[:place] + content[end:],
        "insert": lambda: content[:place] + rng.choice(BYTES) + content[place:],
        "replace": lambda: content[:place] + rng.choice(BYTES) + content[place + 1 :],
        "repeat": lambda: content[:end] + content[place:],
    }[rng.choice(["cut", "insert", "replace", "repeat"])]()


def damaged_json(document, rng):
    """The text of a document after one value was changed, removed or doubled."""
    inside = {"": document}
    at = inside
    key = ""
    while isinstance(at[key], dict | list) and at[key] and (at is inside or rng.random() < 0.8):
        at = at[key]
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
    change = rng.choice(["remove", "replace", "replace", "double"])
    if change == "remove" and at is not inside:
        del at[key]
    elif change == "double" and isinstance(at, list):
        at.append(at[key])
    else:
        at[key] = rng.choice(VALUES)
    return json.dumps(inside[""]).encode()


def read(spec):
    """The lines of what is wrong, or nothing."""
    try:
        data = build("dataset", spec)
        corpus_key(data.name, data.version, data.identity)
        table = data.table()
    except InputError as error:
        return error.problems or [str(error)]
    json.dumps(dict(table.report))
    "\n".join([*table.image_ids, *data.label_names, *table.owner_names]).encode()
    return []


@pytest.mark.parametrize("reader", READERS)
def test_only_explained_errors_come_out(tmp_path, reader):
    options, pattern = READERS[reader]
    name = reader.split()[0]
    spec = runpy.run_path(str(FIXTURES / f"{name}.py"))["write"](tmp_path)
    spec = (spec.replace(", labels='topk', k=5", "") if "labels=" in options else spec)[:-1] + options + ")"
    files = sorted(path for path in tmp_path.rglob(pattern) if path.is_file() and path.name != "class_freq.pkl")
    assert read(spec) == []

    for seed in range(ROUNDS):
        rng = random.Random(f"{reader} {seed}")
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(damaged(content, file.suffix, rng))
        for line in read(spec):
            # Each names its file, by name or by path, and can be printed anywhere.
            assert "." in line.split(" got ")[0] or "label_names" in line, line
            assert line.encode()
        file.write_bytes(content)

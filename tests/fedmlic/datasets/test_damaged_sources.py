"""Whatever is done to a file of a download, readers say what is wrong with it: nothing but ``InputError`` comes out."""

import json
import random
import runpy
import warnings
from pathlib import Path

import pytest

from fedmlic.errors import InputError
from fedmlic.spec import build

TESTS = Path(__file__).parents[2]
FIXTURES = {
    name: runpy.run_path(str(TESTS / "fixtures" / f"{name}.py"))
    for name in (
        "bigearthnet_s2",
        "chestxray14",
        "chexpert",
        "cub",
        "flair",
        "hapi",
        "mirflickr",
        "nuswide",
        "rsna_ich",
        "uc_merced",
    )
}
FLAIR = runpy.run_path(str(Path(__file__).parent / "test_flair.py"))["WRITERS"]


def write_exported(root):
    """RSNA's slices as PNG files, with a table of patients."""
    FIXTURES["rsna_ich"]["exported"](root)
    return f"rsna_ich(root={str(root)!r}, images='png', metadata='metadata.csv', image_size=16)"


def write_flair(writer):
    """FLAIR in another layout, with the hierarchy beside it."""

    def write(root):
        source, out = root / "source", root / "out"
        source.mkdir()
        out.mkdir()
        FIXTURES["flair"]["write"](source)
        FLAIR[writer](source, out)
        (out / "label_relationship.txt").write_bytes((source / "label_relationship.txt").read_bytes())
        return f"flair(root={str(out)!r}, labels='fine', image_size=16)"

    return write


WRITERS = {
    **{name: fixture["write"] for name, fixture in FIXTURES.items()},
    "rsna_ich exported": write_exported,
    "bigearthnet_s2 of release 1": FIXTURES["bigearthnet_s2"]["write_v1"],
    **{f"flair {name}": write_flair(name) for name in FLAIR},
}
VALUES = (None, [], {}, True, -1, 1.5, 1e999, 10**30, "", " ", "\0", "x", [None], {"a": 1}, "9" * 5000)


def changed_json(value, rng):
    """A JSON value in which one node is another one or gone."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.2:
            del copy[key]
        else:
            copy[key] = changed_json(copy[key], rng)
        return copy
    return rng.choice(VALUES)


def insert(content, place, what):
    return content[:place] + what + content[place:]


def changed_lines(content, rng):
    """Text in which one cell of one line, or the line, is another one."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    cells = lines[place].split(b",")
    cell = rng.randrange(len(cells))
    how = rng.randrange(6)
    if how == 0:
        del lines[place]
    elif how == 1:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif how == 2:
        cells.insert(cell, rng.choice([b"", b"x"]))
    elif how == 3:
        del cells[cell]
    else:
        values = (
            b"",
            b"null",
            b"-1",
            b"nan",
            b"1e999",
            b"9" * 5000,
            b"9" * 30,
            b"x" * 140_000,
            b'"',
            b"\xd9\xa3",
            b"../x",
        )
        cells[cell] = rng.choice(values)
    if how > 1:
        lines[place] = b",".join(cells)
    return b"\n".join(lines)


def changed(path, content, rng):
    """Other bytes."""
    if path.suffix == ".json" and rng.random() < 0.7:
        return json.dumps(changed_json(json.loads(content), rng)).encode()
    text = path.suffix in {".csv", ".txt"}
    if text and rng.random() < 0.6:
        return changed_lines(content, rng)
    place = rng.randrange(len(content) + 1)
    return rng.choice(
        [
            lambda: content[:place],
            lambda: insert(content, place, b"\xff"),
            lambda: insert(content, place, b"\0"),
            lambda: insert(content, place, bytes([rng.randrange(256)]) * rng.choice([1, 4, 300])),
            lambda: content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :],
            lambda: content[:place] + content[place + rng.choice([1, 8, 40]) :],
            lambda: content.replace(b",", b";"),
            lambda: content.decode("latin-1").encode("utf-16"),
            lambda: b'{"a": [1, 2]}',
            lambda: b"[" * 100_000,
            lambda: b"",
        ]
    )()


def read(text):
    """Everything that building the data set would read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what it reads all the same
        data = build("dataset", text)
        table = data.table()
        for row in range(len(table.image_ids)):
            try:
                data.image(row)
            except InputError:
                continue


def damage(root, text, rng, times):
    """Damage one file after the other and read; every file is put back. How many were refused."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix not in {".jpg", ".png", ".dcm", ".tif"}]
    refused = 0
    for _ in range(times):
        path = rng.choice(tables if rng.random() < 0.9 else files)
        content = path.read_bytes()
        path.unlink()
        if rng.random() < 0.95:
            path.write_bytes(changed(path, content, rng))
        try:
            read(text)
        except InputError as error:
            refused += str(error).startswith("Expected ")
        path.write_bytes(content)
    return refused


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_but_input_error_comes_out(name, tmp_path):
    text = WRITERS[name](tmp_path)

    assert damage(tmp_path, text, random.Random(name), 25) > 0
    read(text)

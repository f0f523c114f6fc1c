"""Label vectors: each kind's defining property, files, widths, and CLIP against open_clip itself."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fedmlic import text as kinds
from fedmlic.errors import InputError
from fedmlic.seeds import stream
from fedmlic.text import KINDS, LabelVectors, alike, further_vectors, label_vectors, save_vectors, state_vectors

NAMES = ["cat", "dog", "traffic light", "tv"]
GEOMETRIC = ["learned()", "one_hot()", "random_orthogonal()", "simplex_etf()"]


def names(count):
    return [f"label {i}" for i in range(count)]


def cosines(vectors):
    """The definition, one pair at a time."""
    rows = vectors.astype(np.float64).tolist()
    return np.array(
        [
            [sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y)) for y in rows]
            for x in rows
        ]
    )


@pytest.mark.parametrize("spec", GEOMETRIC)
def test_shape_dtype_and_what_decides_the_numbers(spec):
    table = label_vectors(spec, NAMES, 6, seed=3)

    assert table.vectors.shape == (4, 6)
    assert table.vectors.dtype == np.float32
    assert table.vectors.flags.c_contiguous
    assert table.trainable == (spec == "learned()")
    assert table.source
    np.testing.assert_array_equal(table.vectors, label_vectors(spec, NAMES, 6, seed=3).vectors)
    if spec != "one_hot()":
        assert not np.array_equal(table.vectors, label_vectors(spec, NAMES, 6, seed=4).vectors)


def test_learned_starts_uniform_within_the_bound():
    vectors = label_vectors("learned", names(40), 100, seed=0).vectors

    assert np.abs(vectors).max() <= 0.1
    assert np.abs(vectors).max() > 0.099
    assert abs(vectors.mean()) < 0.005
    assert vectors.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)


def test_one_hot_is_the_identity_or_an_error():
    np.testing.assert_array_equal(label_vectors("one_hot", NAMES, 5, seed=0).vectors, np.eye(4, 5))
    with pytest.raises(InputError, match="random_orthogonal"):
        label_vectors("one_hot", NAMES, 3, seed=0)


@given(count=st.integers(1, 12), extra=st.integers(0, 12), seed=st.integers(0, 9))
def test_random_orthogonal_rows_are_orthonormal_where_there_is_room(count, extra, seed):
    vectors = label_vectors("random_orthogonal", names(count), count + extra, seed).vectors.astype(np.float64)

    np.testing.assert_allclose(vectors @ vectors.T, np.eye(count), atol=1e-6)


@given(count=st.integers(2, 12), features=st.integers(2, 6))
def test_random_orthogonal_stacks_bases_where_there_is_not(count, features):
    vectors = label_vectors("random_orthogonal", names(count), features, seed=1).vectors

    for start in range(0, count, features):
        basis = vectors[start : start + features].astype(np.float64)
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-6)
    distinct = cosines(vectors) - np.eye(count)
    assert distinct.max() < 1 - 1e-6


def test_many_labels_stay_about_as_far_apart_as_random_directions():
    """1,628 labels in 512 features: the largest of 1.3 million cosines of deviation 1/sqrt(512) is near 0.24."""
    table = label_vectors("random_orthogonal", names(1628), 512, seed=0)

    gram = table.vectors.astype(np.float64) @ table.vectors.T.astype(np.float64)
    largest = np.abs(gram - np.eye(1628)).max()
    assert 0.15 < largest < 0.3
    assert f"{largest:.3f}" in table.source


def test_random_orthogonal_is_uniform_because_signs_are_fixed():
    """Without the correction, LAPACK's R has a negative first diagonal and the first entry never changes sign."""
    first = [label_vectors("random_orthogonal", ["a"], 3, seed).vectors[0, 0] for seed in range(200)]

    assert 60 < sum(value > 0 for value in first) < 140
    assert np.mean(np.square(first)) == pytest.approx(1 / 3, abs=0.08)


@given(count=st.integers(2, 12), extra=st.integers(-1, 12))
def test_simplex_etf_has_one_cosine(count, extra):
    vectors = label_vectors("simplex_etf", names(count), max(count + extra, 1), seed=0).vectors

    expected = np.where(np.eye(count), 1.0, -1 / (count - 1))
    np.testing.assert_allclose(vectors.astype(np.float64) @ vectors.T, expected, atol=1e-6)
    np.testing.assert_allclose(vectors.sum(axis=0), 0, atol=1e-5)


def test_simplex_etf_is_a_rotation_of_the_published_matrix():
    """E = sqrt(C / (C - 1)) (I - 11'/C): equal Gram matrices mean equal up to a rotation."""
    published = math.sqrt(4 / 3) * (np.eye(4) - np.ones((4, 4)) / 4)
    vectors = label_vectors("simplex_etf", NAMES, 3, seed=0).vectors.astype(np.float64)

    np.testing.assert_allclose(vectors @ vectors.T, published @ published.T, atol=1e-6)


@pytest.mark.parametrize(("count", "features"), [(1, 5), (5, 3)])
def test_simplex_etf_needs_room(count, features):
    with pytest.raises(InputError, match="random_orthogonal"):
        label_vectors("simplex_etf", names(count), features, seed=0)


@pytest.mark.parametrize("spec", GEOMETRIC)
def test_states_have_unknown_at_zero_and_two_more_that_no_label_has(spec):
    states = state_vectors(spec, 8, seed=0)
    labels = label_vectors(spec, NAMES, 8, seed=0).vectors

    assert states.vectors.shape == (3, 8)
    assert states.vectors.dtype == np.float32
    assert (states.vectors[0] == 0).all()
    assert states.trainable == (spec == "learned()")
    sums = (labels[:, None] + states.vectors[None]).reshape(-1, 8)
    distances = np.linalg.norm(sums[:, None] - sums[None], axis=2) + np.eye(len(sums))
    assert distances.min() > 0.05
    if spec == "simplex_etf()":
        np.testing.assert_array_equal(states.vectors[1], -states.vectors[2])
    if spec in {"one_hot()", "random_orthogonal()"}:
        np.testing.assert_allclose(states.vectors[1:] @ states.vectors[1:].T, np.eye(2), atol=1e-6)


def write(folder, kind, table):
    path = folder / f"vectors.{kind}"
    if kind == "npy":
        np.save(path, np.stack(list(table.values())))
    elif kind == "json":
        path.write_text(json.dumps({name: vector.tolist() for name, vector in table.items()}))
    else:
        save_file(table, path)
    return path


@pytest.mark.parametrize("kind", ["npy", "json", "safetensors"])
def test_file_gives_back_its_rows_in_the_order_of_the_labels(tmp_path, kind):
    table = {name: np.arange(5, dtype=np.float32) + i for i, name in enumerate(NAMES)}
    path = write(tmp_path, kind, table)
    order = NAMES if kind == "npy" else [NAMES[i] for i in (2, 0, 3)]

    got = label_vectors(f"file(path={str(path)!r})", order, 5, seed=0)

    np.testing.assert_array_equal(got.vectors, np.stack([table[name] for name in order]))
    assert not got.trainable
    assert path.name in got.source
    assert str(tmp_path) not in got.source
    assert ("1 other names left out" in got.source) == (kind != "npy")


def test_saved_vectors_come_back_exactly(tmp_path):
    table = label_vectors("random_orthogonal", NAMES, 7, seed=0)
    path = str(tmp_path / "vectors.safetensors")

    save_vectors(path, NAMES, table.vectors)

    np.testing.assert_array_equal(label_vectors(f"file(path={path!r})", NAMES, 7, seed=1).vectors, table.vectors)


def test_states_come_from_a_file_with_their_names(tmp_path):
    path = write(tmp_path, "json", {"positive": np.ones(4), "negative": -np.ones(4)})

    states = state_vectors(f"file(path={str(path)!r})", 4, seed=0)

    np.testing.assert_array_equal(states.vectors, [[0] * 4, [-1] * 4, [1] * 4])


def test_bad_files_are_input_errors(tmp_path):
    def read(name, wanted=NAMES):
        label_vectors(f"file(path={str(tmp_path / name)!r})", wanted, 2, seed=0)

    with pytest.raises(InputError, match="readable"):
        read("missing.npy")
    with pytest.raises(InputError, match="end in"):
        read("vectors.csv")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match="readable"):
        read("objects.npy")
    np.save(tmp_path / "short.npy", np.ones((3, 2)))
    with pytest.raises(InputError, match=r"4 names, features\], got \[3, 2\]"):
        read("short.npy")
    for name, text, match in (
        ("list.json", "[[1, 2]]", "instead of an object"),
        ("broken.json", "{", "readable"),
        ("nan.json", '{"cat": [NaN, 1]}', "finite"),
        ("text.json", '{"cat": ["a", "b"]}', "finite"),
        ("other.json", '{"dog": [1, 2]}', r"none for 1 \(cat\).*dog"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=match):
            read(name, ["cat"])
    (tmp_path / "ragged.json").write_text('{"cat": [1, 2], "dog": [1]}')
    with pytest.raises(InputError, match="different lengths"):
        read("ragged.json", ["cat", "dog"])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="readable"):
        read("broken.safetensors")


@settings(max_examples=25)
@given(count=st.integers(1, 6), width=st.integers(1, 12), extra=st.integers(0, 6), seed=st.integers(0, 5))
def test_a_change_of_width_keeps_lengths_and_cosines_where_there_is_room(tmp_path_factory, count, width, extra, seed):
    rows = stream(seed, "test").standard_normal((count, width))
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, rows)

    got = label_vectors(f"file(path={str(path)!r})", names(count), count + extra, seed).vectors.astype(np.float64)

    assert got.shape == (count, count + extra)
    np.testing.assert_allclose(got @ got.T, rows @ rows.T, atol=1e-5)


def test_a_projection_without_room_keeps_lengths_and_says_what_it_moved(tmp_path):
    rows = stream(0, "test").standard_normal((30, 64))
    rows[7] = 0
    np.save(tmp_path / "v.npy", rows)

    table = label_vectors(f"file(path={str(tmp_path / 'v.npy')!r})", names(30), 16, seed=0)

    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)
    kept = np.arange(30) != 7
    moved = np.abs(cosines(table.vectors[kept]) - cosines(rows[kept]))
    assert f"moved by up to {moved.max():.3f}" in table.source
    assert np.sqrt((moved**2).mean()) < 1.5 / math.sqrt(16)


def test_labels_and_states_share_the_map_into_more_features(tmp_path):
    rows = {name: stream(0, "test", i).standard_normal(5) for i, name in enumerate(["cat", "negative", "positive"])}
    spec = f"file(path={str(write(tmp_path, 'json', rows))!r})"

    label = label_vectors(spec, ["cat"], 9, seed=0).vectors[0]
    states = state_vectors(spec, 9, seed=0).vectors[1:]

    np.testing.assert_allclose(
        states @ label, [rows["negative"] @ rows["cat"], rows["positive"] @ rows["cat"]], atol=1e-5
    )


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("onehot", "'one_hot'"),
        ("one_hot(a=1)", "none"),
        ("file", "path"),
        ("clip", "either weights"),
        ("clip(weights='a.pt', pretrained='openai')", "either weights"),
        ("clip(pretrained='openai')", "download=True"),
        ("clip(weights='a.pt', template='no slot')", "once"),
        ("clip(weights='a.pt', join='sum')", "join"),
        ("clip(weights='a.pt', fine_names='f.json')", "concat or average"),
        ("minilm(join='sum')", "join"),
        ("minilm(unknown='skip')", "unknown"),
        ("minilm(template='{} {}')", "once"),
        ("minilm(fine_names='f.json')", "concat or average"),
        ("glove(unknown='keep')", "unknown"),
        ("glove(words='a.txt')", "words"),
        ("shuffled()", "of"),
        ("shuffled(of='minilm(a=1)')", "'a'"),
        ("shuffled(of='mimilm()')", "'minilm'"),
        ("shuffled(of='learned()')", "frozen and not shuffled"),
        ("shuffled(of='shuffled(of=\"one_hot()\")')", "frozen and not shuffled"),
        ("no_such_package.kind()", "importable"),
    ],
)
def test_wrong_specs_are_input_errors(spec, match):
    with pytest.raises(InputError, match=match):
        label_vectors(spec, NAMES, 8, seed=0)


@pytest.mark.parametrize(("wanted", "features"), [([], 4), (["a", "a"], 4), (["a"], 0)])
def test_wrong_names_and_widths_are_input_errors(wanted, features):
    with pytest.raises(InputError):
        label_vectors("learned", wanted, features, seed=0)


def test_a_kind_from_outside_is_named_by_a_dotted_name():
    table = label_vectors("fedmlic.text.one_hot()", ["a"], 2, seed=0)

    assert isinstance(table, LabelVectors)
    assert set(KINDS) >= {"learned", "clip", "minilm", "glove", "shuffled"}
    assert all(callable(getattr(kinds, kind)) for kind in KINDS)


def test_etf_is_the_short_name_of_simplex_etf():
    short, long = (label_vectors(name, NAMES, 6, seed=2) for name in ("etf()", "simplex_etf()"))

    np.testing.assert_array_equal(short.vectors, long.vectors)
    assert short.source == long.source
    assert not short.trainable


@given(count=st.integers(2, 9), features=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 20))
def test_shuffled_hands_every_vector_to_another_label(tmp_path_factory, count, features, width, seed):
    """Also after a change of width: the very rows of the other kind, none where it was."""
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, stream(seed, "test").standard_normal((count, width)))
    of = f"file(path={str(path)!r})"

    own = label_vectors(of, names(count), features, seed).vectors
    table = label_vectors(f"shuffled(of={of!r})", names(count), features, seed)

    assert not table.trainable
    assert table.source.startswith("shuffled file")
    assert sorted(map(tuple, table.vectors.tolist())) == sorted(map(tuple, own.tolist()))
    assert (table.vectors != own).any(axis=1).all()


def test_the_seed_decides_among_all_derangements():
    """Of 3 labels there are two, of 4 there are nine, all about equally frequent."""
    for count, expected in ((3, 2), (4, 9)):
        tables = [label_vectors("shuffled(of='one_hot()')", names(count), count, seed).vectors for seed in range(270)]
        seen = [tuple(table.argmax(axis=1)) for table in tables]
        assert len(set(seen)) == expected
        assert min(seen.count(order) for order in set(seen)) > 270 / expected / 2


def test_shuffled_leaves_states_as_they_are_and_needs_two_labels():
    for kind in ("random_orthogonal()", "one_hot()", "etf()"):
        states = state_vectors(f"shuffled(of={kind!r})", 6, seed=1).vectors
        np.testing.assert_array_equal(states, state_vectors(kind, 6, seed=1).vectors)
    with pytest.raises(InputError, match="2 labels or more"):
        label_vectors("shuffled(of='one_hot()')", ["a"], 3, seed=0)


CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
MODEL = "fedmlic-test-tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """open_clip, a model of its with random weights, and a file of them; nothing is fetched."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{MODEL}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CLIP(**CONFIG).eval()
    torch.save(network.state_dict(), folder / "tiny.pt")
    return open_clip, network, folder


def raw_features(tiny, prompts):
    """Features by open_clip's own classes, as they are."""
    open_clip, network, _ = tiny
    with torch.no_grad():
        return network.encode_text(open_clip.SimpleTokenizer(context_length=16)(prompts)).numpy()


def reference(tiny, prompts):
    """Features by open_clip's own classes, scaled to length 1 by hand."""
    features = raw_features(tiny, prompts)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def clip_spec(tiny, **arguments):
    arguments = {"model": MODEL, "weights": str(tiny[2] / "tiny.pt"), **arguments}
    return f"clip({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def test_clip_plain_equals_open_clip(tiny):
    before = torch.random.get_rng_state()

    table = label_vectors(clip_spec(tiny), NAMES, 24, seed=0)

    expected = reference(tiny, [f"The photo contains {name}." for name in NAMES])
    np.testing.assert_allclose(table.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), 1, atol=1e-6)
    assert not table.trainable
    assert "tiny.pt sha256:" in table.source
    assert "The photo contains {}." in table.source
    assert torch.equal(before, torch.random.get_rng_state())


def test_clip_states_are_bare_words(tiny):
    states = state_vectors(clip_spec(tiny), 24, seed=0).vectors

    np.testing.assert_allclose(states[1:], reference(tiny, ["negative", "positive"]), atol=1e-6)
    assert (states[0] == 0).all()


FINE = {"pet": ["cat", "dog", "hamster"], "plant": ["tree"]}


@pytest.mark.parametrize("renormalise", [False, True])
def test_clip_average_is_the_mean_of_features_as_they_are(tiny, renormalise):
    spec = clip_spec(tiny, join="average", template="a {}", renormalise=renormalise)

    table = label_vectors(spec, ["plant", "pet"], 24, seed=0, fine_names=FINE)

    tree = raw_features(tiny, ["a tree"])[0]
    mean = raw_features(tiny, ["a cat", "a dog", "a hamster"]).mean(axis=0)
    expected = [row / np.linalg.norm(row) if renormalise else row for row in (tree, mean)]
    np.testing.assert_allclose(table.vectors, expected, rtol=1e-5, atol=1e-6)
    assert ("renormalised" in table.source) == renormalise
    states = state_vectors(spec, 24, seed=0).vectors
    np.testing.assert_allclose(states[1:], reference(tiny, ["negative", "positive"]), atol=1e-6)


@pytest.mark.parametrize(("renormalise", "pet"), [(False, [3.0, 8.0]), (True, [3 / 73**0.5, 8 / 73**0.5])])
def test_clip_average_by_hand(tiny, monkeypatch, renormalise, pet):
    """A long and a short feature count as they are: of (6, 8) and (0, 8), not of (0.6, 0.8) and (0, 1)."""
    features = {"a cat": [6.0, 8.0], "a dog": [0.0, 8.0], "a tree": [0.0, 5.0]}

    def encode(_, prompts, *, scaled):
        rows = np.array([features[prompt] for prompt in prompts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if scaled else rows

    monkeypatch.setattr("fedmlic.clip_text.Tower.encode", encode)
    spec = clip_spec(tiny, join="average", template="a {}", renormalise=renormalise)

    table = label_vectors(spec, ["pet", "plant"], 2, seed=0, fine_names={"pet": ["cat", "dog"], "plant": ["tree"]})

    np.testing.assert_allclose(table.vectors, [pet, [0.0, 1.0 if renormalise else 5.0]], rtol=1e-6)


def test_clip_concat_joins_the_first_names_and_says_which(tiny):
    spec = clip_spec(tiny, join="concat", max_names=2)

    table = label_vectors(spec, ["pet", "plant"], 24, seed=0, fine_names=FINE)

    expected = reference(tiny, ["The photo contains cat, dog.", "The photo contains tree."])
    np.testing.assert_allclose(table.vectors, expected, atol=1e-6)
    assert "first fine names only: pet 2 of 3" in table.source


def test_clip_concat_takes_what_the_context_holds(tiny):
    """16 tokens: start, end, 'the photo contains', the stop leave 10, which is 5 words and 5 commas but for one."""
    fine = {"pet": ["cat", "dog", "fish", "bird", "horse", "cow", "sheep", "pig"]}

    table = label_vectors(clip_spec(tiny, join="concat"), ["pet"], 24, seed=0, fine_names=fine)

    expected = reference(tiny, ["The photo contains cat, dog, fish, bird, horse."])
    np.testing.assert_allclose(table.vectors, expected, atol=1e-6)
    assert "pet 5 of 8" in table.source


def test_clip_never_cuts_a_prompt_silently(tiny):
    with pytest.raises(InputError, match="at most 16 tokens, got 1 longer"):
        label_vectors(clip_spec(tiny), ["cat", "dog " * 20], 24, seed=0)


def test_clip_reads_fine_names_from_a_file(tiny, tmp_path):
    path = tmp_path / "fine.json"
    path.write_text(json.dumps(FINE))
    spec = clip_spec(tiny, join="average", fine_names=str(path))

    from_file = label_vectors(spec, ["pet"], 24, seed=0)

    given = label_vectors(clip_spec(tiny, join="average"), ["pet"], 24, seed=0, fine_names=FINE)
    np.testing.assert_array_equal(from_file.vectors, given.vectors)
    with pytest.raises(InputError, match=r"none for 1 of 2 \(toy\)"):
        label_vectors(spec, ["pet", "toy"], 24, seed=0)
    for text, match in (('{"pet": "cat"}', "object like"), ("[1]", "object like"), ("{", "readable")):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            label_vectors(spec, ["pet"], 24, seed=0)


def test_clip_vectors_keep_their_cosines_in_another_width(tiny):
    expected = cosines(label_vectors(clip_spec(tiny), NAMES, 24, seed=0).vectors)

    for features in (5, 40):
        vectors = label_vectors(clip_spec(tiny), NAMES, features, seed=0).vectors
        np.testing.assert_allclose(cosines(vectors), expected, atol=1e-5)


def test_clip_reads_safetensors_too(tiny, tmp_path):
    path = str(tmp_path / "tiny.safetensors")
    save_file({name: value.numpy() for name, value in tiny[1].state_dict().items()}, path)

    table = label_vectors(clip_spec(tiny, weights=path), NAMES, 24, seed=0)

    np.testing.assert_array_equal(table.vectors, label_vectors(clip_spec(tiny), NAMES, 24, seed=0).vectors)


def test_clip_weights_that_do_not_fit_are_input_errors(tiny, tmp_path):
    torch.save({"positional_embedding": torch.zeros(2, 2)}, tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    torch.save({}, tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    told = {"other.pt": "hold weights of", "broken.pt": "damaged", "empty.pt": "state dict", "list.pt": "state dict"}
    for name, words in told.items():
        with pytest.raises(InputError, match=words) as caught:
            label_vectors(clip_spec(tiny, weights=str(tmp_path / name)), NAMES, 24, seed=0)
        assert "weights_only" not in str(caught.value)
    with pytest.raises(InputError, match="nothing at"):
        label_vectors(clip_spec(tiny, weights=str(tmp_path / "missing.pt")), NAMES, 24, seed=0)
    with pytest.raises(InputError, match="ViT-B-16"):
        label_vectors(clip_spec(tiny, model="ViT-B-61"), NAMES, 24, seed=0)
    with pytest.raises(InputError, match="own tokenizer"):
        label_vectors(clip_spec(tiny, model="ViT-B-16-SigLIP"), NAMES, 24, seed=0)
    with pytest.raises(InputError, match="tag of ViT-B-16"):
        label_vectors("clip(pretrained='opnai', download=True)", NAMES, 24, seed=0)


def test_clip_without_open_clip_says_how_to_install_it(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)

    with pytest.raises(InputError, match=r"fedmlic\[clip\]"):
        label_vectors(clip_spec(tiny), NAMES, 24, seed=0)


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b88k", False)])
def test_clip_tags_get_the_activation_they_were_trained_with(tiny, monkeypatch, tag, quick):
    calls = []

    def create(name, **options):
        calls.append((name, options))
        return tiny[1]

    monkeypatch.setattr(tiny[0], "create_model", create)
    monkeypatch.setattr(tiny[0], "get_tokenizer", lambda _: tiny[0].SimpleTokenizer(context_length=16))

    table = label_vectors(f"clip(pretrained={tag!r}, download=True)", ["cat"], 24, seed=0)

    assert calls == [("ViT-B-16", {"pretrained": tag, "force_quick_gelu": quick})]
    assert f"open_clip {tag}" in table.source


def words(folder, count, width, seed=0, **more):
    """A file of vectors for ``count`` labels and for ``more`` names; the spec that reads it, and the labels."""
    rng = np.random.default_rng(seed)
    table = {name: rng.standard_normal(width).astype(np.float32) for name in names(count)}
    table |= {
        name: np.asarray(value, np.float32) if value is not None else rng.standard_normal(width).astype(np.float32)
        for name, value in more.items()
    }
    save_vectors(str(folder / "v.safetensors"), list(table), np.stack(list(table.values())))
    return f"file(path={str(folder / 'v.safetensors')!r})", names(count), table


@pytest.mark.parametrize(("count", "width", "features"), [(3, 8, 8), (3, 5, 8), (4, 12, 6), (9, 12, 6)])
def test_further_names_get_vectors_by_the_map_of_the_labels(tmp_path, count, width, features):
    """All three changes of width: cosines among further names and labels are kept where the map keeps them."""
    spec, labels, table = words(tmp_path, count, width, kite=None, whale=None)
    made = label_vectors(spec, labels, features, seed=4).vectors

    further, own = further_vectors(spec, ["whale", labels[1], "kite", labels[0]], labels, features, seed=4)

    np.testing.assert_array_equal(own, made)
    np.testing.assert_array_equal(further[[3, 1]], made[:2])
    lengths = [np.linalg.norm(table[name].astype(np.float64)) for name in ("whale", "kite")]
    np.testing.assert_allclose(np.linalg.norm(further[[0, 2]], axis=1), lengths, rtol=1e-5)
    alone, _ = further_vectors(spec, ["kite"], labels, features, seed=4)
    np.testing.assert_array_equal(alone[0], further[2])
    if width <= features:
        every = np.stack([table["whale"], table["kite"], *[table[name] for name in labels]])
        np.testing.assert_allclose(cosines(np.concatenate([further[[0, 2]], made])), cosines(every), atol=1e-5)
    elif count <= features:
        # What a name has in common with the labels' span, found by least squares, has the cosines.
        basis = np.stack([table[name] for name in labels]).astype(np.float64)
        shadow = np.linalg.lstsq(basis.T, table["kite"].astype(np.float64), rcond=None)[0] @ basis
        both = np.concatenate([shadow[None], basis])
        np.testing.assert_allclose(cosines(np.concatenate([further[[2]], made])), cosines(both), atol=1e-5)


def test_a_name_with_the_vector_of_a_label_is_that_label(tmp_path):
    first = np.random.default_rng(0).standard_normal(12)
    spec, labels, _ = words(tmp_path, 3, 12, Twin=first)

    for features in (16, 12, 4):
        further, own = further_vectors(spec, ["Twin"], labels, features, seed=1)
        np.testing.assert_array_equal(further[0], own[0])


def test_names_that_cannot_be_mapped_are_errors(tmp_path):
    spec, labels, table = words(tmp_path, 2, 6)
    basis = np.stack([table[name] for name in labels])
    lost = np.linalg.svd(basis)[2][-1]
    spec, labels, _ = words(tmp_path, 2, 6, lost=lost)

    with pytest.raises(InputError, match="something in common with the labels, got 'lost'"):
        further_vectors(spec, ["lost"], labels, 4, seed=0)
    assert further_vectors(spec, ["lost"], labels, 6, seed=0)[0].shape == (1, 6)
    with pytest.raises(InputError, match="got none for 1"):
        further_vectors(spec, ["never heard of"], labels, 6, seed=0)


@pytest.mark.parametrize("spec", [*GEOMETRIC, "etf()", "shuffled(of='one_hot()')", "file(path='a.npy')"])
def test_vectors_that_do_not_come_from_a_name_have_none_for_further_names(spec):
    with pytest.raises(InputError, match=r"made from a name alone .*minilm, glove, clip"):
        further_vectors(spec, ["kite"], ["cat", "dog"], 4, seed=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_equal_vectors_are_found_whatever_their_order(seed, count, different):
    rng = np.random.default_rng(seed)
    which = rng.integers(0, different, count)
    rows = (rng.standard_normal((different, 6)) * rng.choice([0.0, 1e-3, 1.0, 50.0], (different, 1)))[which]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    shaken = rows + 3e-8 * lengths * rng.uniform(-1, 1, rows.shape)

    expected: dict[tuple[float, ...], list[str]] = {}
    for name, row in zip(names(count), rows.tolist(), strict=True):
        expected.setdefault(tuple(each + 0.0 for each in row), []).append(name)

    assert alike(names(count), shaken) == [" = ".join(group) for group in expected.values() if len(group) > 1]


def test_vectors_that_are_close_but_not_equal_are_not_taken_for_equal():
    row = np.ones(8)

    assert alike(["a", "b"], np.stack([row, row * (1 + 1e-5)])) == []
    assert alike(["a", "b"], np.stack([row, row * (1 + 1e-7)])) == ["a = b"]


@pytest.mark.parametrize(("count", "features"), [(8, 64), (8, 20), (8, 12), (8, 5)])
def test_a_change_of_width_does_not_hide_that_labels_have_equal_vectors(tmp_path, count, features):
    rows = np.random.default_rng(0).standard_normal((count, 20))
    rows[5] = rows[2]
    (tmp_path / "vectors.json").write_text(json.dumps(dict(zip(names(count), rows.tolist(), strict=True))))

    table = label_vectors(f"file(path={str(tmp_path / 'vectors.json')!r})", names(count), features, seed=0)

    assert alike(names(count), table.vectors) == ["label 2 = label 5"]

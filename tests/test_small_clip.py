"""The program that trains a small CLIP: its folder is read by both halves, and holds the network that was trained."""

import importlib.util
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fedmlic.corpus import open_corpus
from fedmlic.metrics import evaluate
from fedmlic.models.clip_image import clip_image
from fedmlic.prompt_learner import PromptLearner, open_reader
from fedmlic.spec import build

DATASET = (
    "scenes(preset='tiny', image_size=16, num_labels=4, num_coarse=2, cardinality=1.5, population=4, num_images=80, "
    "num_test=40)"
)
SIZES = {"steps": 3, "batch": 8, "width": 32, "depth": 2, "text-width": 64, "text-depth": 1, "features": 12, "show": 2}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="words are split by open_clip")


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield import_module("small_clip")


@pytest.fixture(scope="module")
def made(program, tmp_path_factory):
    """The folder, the network that was saved there, and the pictures."""
    folder = tmp_path_factory.mktemp("clip") / "weights"
    kept, sizes = [], [f"--{name}={value}" for name, value in SIZES.items()]
    with pytest.MonkeyPatch.context() as patch:
        save = program.save
        patch.setattr(program, "save", lambda network, path: (kept.append(network), save(network, path)))
        program.main([str(folder), "--dataset", DATASET, *sizes])
    return folder, kept[0].eval(), open_corpus(build("dataset", DATASET))


def in_words(program, network, texts):
    """Features of texts by the network in training's own way, of length 1."""
    tokens, ends = program.read(texts, network.words)
    return F.normalize(network.text(network.table(tokens), ends), dim=1)


@torch.no_grad()
def test_both_halves_of_the_folder_are_the_network_that_was_trained(program, made):
    folder, network, corpus = made
    pictures = program.pixels_of(corpus, np.arange(6))

    tower = clip_image(path=str(folder), features="pooled", projection=True).build(3).eval()
    reader = open_reader(str(folder), "", features=0, seed=0, who="hp_dval")
    learner = PromptLearner(reader, corpus.label_names, "a photo of a {}", 4)

    torch.testing.assert_close(tower(pictures), network.image(pictures), rtol=1e-4, atol=1e-5)
    texts = in_words(program, network, [f"a photo of a {name}" for name in corpus.label_names])
    torch.testing.assert_close(learner.handwritten, texts, rtol=1e-4, atol=1e-5)
    assert reader.features == tower.num_features == 12


@torch.no_grad()
def test_zero_shot_scores_are_cosines_of_the_whole_image_and_the_prompt(program, made, capsys):
    folder, network, corpus = made
    rows = np.asarray(corpus.splits["test"])
    texts = in_words(program, network, [f"a photo of a {name}" for name in corpus.label_names])
    cosines = F.normalize(network.image(program.pixels_of(corpus, rows)).flatten(1), dim=1) @ texts.T
    expected = evaluate((cosines.double().numpy() + 1) / 2, corpus.labels.take(rows)).values["mAP"]

    assert program.zero_shot(folder, corpus, 1.0) == pytest.approx(expected)
    program.main([str(folder), "--zero-shot", DATASET])

    assert f"alpha 1.0: test mAP {expected:.3f}" in capsys.readouterr().out


def test_steps_change_what_captions_use_and_no_other_word(program, made):
    folder, network, corpus = made
    options = network.options
    with program.torch_global_stream(options.seed, "small_clip/start"):
        start = program.SmallClip(options, 16, network.words)

    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, start.state_dict()[name])}

    assert {"table.weight", "logit_scale", "text.projection", "image.projection.weight", "image.cls_token"} <= moved
    table = load_file(folder / "model.safetensors")["text_model.embeddings.token_embedding.weight"]
    assert table.shape == (49408, 64)
    torch.testing.assert_close(table[network.words], network.table.weight)
    known = {word for name in corpus.label_names for word in program.TOKENIZER.encode(name)}
    assert known < set(network.words)


def test_captions_name_what_is_there_in_any_order_and_sometimes_a_part(program):
    names = ["plain disc", "dotted star", "barred heart"]
    rng = np.random.default_rng(0)

    found = [program.caption(names, rng) for _ in range(400)]

    counts = [sum(name in text for name in names) for text in found]
    assert set(counts) == {1, 2, 3}
    # A quarter draw a number from 1 to 3, of which two thirds leave something out.
    assert sum(count < 3 for count in counts) / 400 == pytest.approx(1 / 6, abs=0.06)
    whole = [text for text, count in zip(found, counts, strict=True) if count == 3]
    orders = {tuple(sorted(names, key=text.index)) for text in whole}
    assert len(orders) == 6
    words = set(program.words_of(names))
    assert {word for text in found for word in program.TOKENIZER.encode(text)} <= words
    assert "a photo of a dotted star" in {program.caption(names[1:2], rng) for _ in range(100)}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="compares with the library transformers")
@torch.no_grad()
def test_transformers_reads_the_folder_and_computes_the_same(program, made):
    import transformers

    folder, network, corpus = made
    raw = corpus.images.take(np.arange(6))
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in program.PIXELS["clip"])
    prepared = (torch.from_numpy(raw).permute(0, 3, 1, 2) / 255 - mean) / std
    rows = [[49406, *program.TOKENIZER.encode(f"a photo of a {name}"), 49407] for name in corpus.label_names]

    theirs, report = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
    theirs.eval()
    pictures = theirs.visual_projection(theirs.vision_model(prepared).pooler_output)
    texts = [theirs.text_projection(theirs.text_model(torch.tensor([row])).pooler_output)[0] for row in rows]

    assert not any(report.values())
    own = network.image(program.pixels_of(corpus, np.arange(6))).flatten(1)
    torch.testing.assert_close(own, pictures, rtol=1e-4, atol=1e-5)
    expected = F.normalize(torch.stack(texts), dim=1)
    found = in_words(program, network, [f"a photo of a {name}" for name in corpus.label_names])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

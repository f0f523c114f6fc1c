"""Prompts with trained contexts against open_clip's own text half; what flows and what stays."""

import importlib.util
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fedmlic import prompt_learner
from fedmlic.errors import InputError
from fedmlic.prompt_learner import PromptLearner, folder_reader, open_clip_reader, open_reader, random_reader

CLIP = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "clip_folder.py"))
NAMES = ("cat", "traffic light", "hydrangea bush")
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
MODEL = "fedmlic-test-prompts"
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="compares with open_clip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """open_clip, a network of its with random weights, and a folder with its file and with a folder of transformers."""
    open_clip = pytest.importorskip("open_clip")
    path = tmp_path_factory.mktemp("clip")
    for name, quick in ((MODEL, False), (f"{MODEL}-quickgelu", True)):
        (path / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
    open_clip.add_model_config(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {quick: open_clip.CLIP(**CONFIG, quick_gelu=quick).eval() for quick in (False, True)}
        for name, tensor in networks[False].state_dict().items():
            tensor.add_(0.1 * torch.randn_like(tensor))
            networks[True].state_dict()[name].copy_(tensor)
    torch.save(networks[False].state_dict(), path / "tiny.pt")
    CLIP["folder"](path / "folder")
    return open_clip, networks, path


def by_open_clip(clip, prompts, *, quick, contexts=None):
    """Features by open_clip's modules; ``contexts`` [M, width] stand in place of the words after the start."""
    open_clip, networks, _ = clip
    network, tokens = networks[quick], open_clip.SimpleTokenizer(context_length=16)(prompts)
    values = network.token_embedding(tokens)
    if contexts is not None:
        rest = values[:, 1 + len(contexts) :]
        values = torch.cat([values[:, :1], contexts.expand(len(tokens), -1, -1), rest], dim=1)
    values = network.transformer(values + network.positional_embedding, attn_mask=network.attn_mask)
    last = network.ln_final(values)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    return last @ network.text_projection


@needs_open_clip
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("template", ["a photo of a {}", "{}", "this is one {} of many."])
def test_handwritten_prompts_are_those_of_open_clip(clip, quick, template):
    reader = open_clip_reader(str(clip[2] / "tiny.pt"), MODEL + "-quickgelu" * quick)
    learner = PromptLearner(reader, NAMES, template, 4)

    prompts = [template.replace("{}", name) for name in NAMES]
    tokens = clip[0].SimpleTokenizer(context_length=16)(prompts)

    for found, normalize in ((learner.handwritten, True), (learner.handwritten_raw(), False)):
        expected = clip[1][quick].encode_text(tokens, normalize=normalize)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not [name for name in learner.state_dict() if "raw" in name]
    assert "tiny.pt sha256:" in reader.source


@needs_open_clip
def test_gradients_of_contexts_are_those_of_open_clip(clip):
    learner = PromptLearner(open_clip_reader(str(clip[2] / "tiny.pt"), MODEL), NAMES, "a {}.", 3)
    contexts = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}

    found = learner(contexts)
    found.square().sum().backward()

    other = contexts.detach().clone().requires_grad_()
    prompts = [f"x x x {name}." for name in NAMES]
    expected = torch.stack([by_open_clip(clip, prompts, quick=False, contexts=each) for each in other])
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(contexts.grad, other.grad, rtol=1e-4, atol=1e-4)
    assert (contexts.grad != 0).any(dim=2).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in learner.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())


@needs_open_clip
def test_a_folder_of_transformers_is_read_as_a_file_of_open_clip_is(clip, tmp_path):
    """The same numbers by other names: open_clip's network gets those of the folder, one by one."""
    given = CLIP["tensors"]()
    network = clip[1][True]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["positional_embedding"] = given["text_model.embeddings.position_embedding.weight"]
    state["token_embedding.weight"] = given["text_model.embeddings.token_embedding.weight"]
    state["text_projection"] = given["text_projection.weight"].T.contiguous()
    for part in ("weight", "bias"):
        state[f"ln_final.{part}"] = given[f"text_model.final_layer_norm.{part}"]
        for number in range(2):
            old, new = f"text_model.encoder.layers.{number}", f"transformer.resblocks.{number}"
            for n in (1, 2):
                state[f"{new}.ln_{n}.{part}"] = given[f"{old}.layer_norm{n}.{part}"]
            joint = torch.cat([given[f"{old}.self_attn.{each}_proj.{part}"] for each in "qkv"])
            state[f"{new}.attn.in_proj_{part}"] = joint
            state[f"{new}.attn.out_proj.{part}"] = given[f"{old}.self_attn.out_proj.{part}"]
            state[f"{new}.mlp.c_fc.{part}"] = given[f"{old}.mlp.fc1.{part}"]
            state[f"{new}.mlp.c_proj.{part}"] = given[f"{old}.mlp.fc2.{part}"]
    save_file(state, tmp_path / "tiny.safetensors")

    folder = PromptLearner(folder_reader(str(clip[2] / "folder")), NAMES, "a photo of a {}", 4)
    file = open_clip_reader(str(tmp_path / "tiny.safetensors"), f"{MODEL}-quickgelu")

    expected = PromptLearner(file, NAMES, "a photo of a {}", 4)
    torch.testing.assert_close(folder.handwritten, expected.handwritten)
    assert not torch.allclose(folder.handwritten[0], folder.handwritten[1], atol=1e-3)


def test_the_words_of_the_template_as_context_give_its_features():
    learner = PromptLearner(random_reader(10, seed=3), NAMES, "see {} here", 3)

    found = learner(learner.begin("template")[None])[0]

    torch.testing.assert_close(F.normalize(found, dim=1), learner.handwritten)
    with pytest.raises(InputError, match=r"context_length to be 3, .*got 4"):
        PromptLearner(random_reader(10, seed=3), NAMES, "see {} here", 4).begin("template")


def test_parts_change_neither_features_nor_gradients(monkeypatch):
    learner = PromptLearner(random_reader(10, seed=3), [f"label {n}" for n in range(11)], "a {}", 2)
    results = []
    for part in (100, 3):
        monkeypatch.setattr(prompt_learner, "PART", part)
        contexts = torch.ones(2, 2, 32).requires_grad_()
        features = learner(contexts)
        features.square().sum().backward()
        results.append((features, contexts.grad, learner(contexts.detach())))

    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_label_has_the_same_prompt_whatever_other_labels_there_are():
    reader = random_reader(10, seed=3)
    alone = PromptLearner(reader, ["cat"], "a {}", 2)
    among = PromptLearner(reader, ["a very long name", "cat"], "a {}", 2)

    context = torch.ones(1, 2, 32)
    torch.testing.assert_close(among(context)[:, 1], alone(context)[:, 0])
    torch.testing.assert_close(among.handwritten[1], alone.handwritten[0])


def test_an_underscore_in_a_name_is_a_blank():
    reader = random_reader(10, seed=3)
    found, expected = (PromptLearner(reader, [name], "so {} is_it", 2) for name in ("traffic_light_", "traffic light "))

    assert torch.equal(found.handwritten, expected.handwritten)
    assert torch.equal(found(torch.ones(1, 2, 32)), expected(torch.ones(1, 2, 32)))
    assert not torch.allclose(found.handwritten, PromptLearner(reader, ["trafficlight"], "so {} is_it", 2).handwritten)
    as_bytes = torch.tensor([*b"traffic light  is_it", reader.end])
    assert torch.equal(found.names[0], reader.table[as_bytes])


def test_random_ones_are_those_of_their_seed_and_move_nobodys_stream():
    before = torch.random.get_rng_state()
    first, second, other = (PromptLearner(random_reader(6, seed), NAMES, "a {}", 2) for seed in (1, 1, 2))

    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.handwritten, second.handwritten)
    assert not torch.equal(first.handwritten, other.handwritten)


def test_what_cannot_be_read_is_said():
    reader = random_reader(6, seed=0)
    with pytest.raises(InputError, match=r"got nothing. Copy the folder openai/clip-vit-base-patch16"):
        open_reader("", "ViT-B-16", features=6, seed=0, who="hp_dval")
    for path in ("/nowhere/clip-vit-base-patch16", "/nowhere/clip-v1.5"):
        with pytest.raises(InputError, match=r"promptfl to be a folder with config.*got nothing at '/nowhere/clip"):
            open_reader(path, "ViT-B-16", features=6, seed=0, who="promptfl")
    with pytest.raises(InputError, match=r"at most 77 tokens with 4 of context, got 1 longer .* 'aaaa"):
        PromptLearner(reader, ["cat", "a" * 72], "{}", 4)
    assert PromptLearner(reader, ["a" * 71], "{}", 4).handwritten.isfinite().all()
    for template in ("a photo", "{} {}"):
        with pytest.raises(InputError, match=r"contain \{\} once"):
            PromptLearner(reader, ["cat"], template, 4)


@needs_open_clip
def test_files_and_folders_of_something_else_are_refused(clip, tmp_path):
    with pytest.raises(InputError, match="nothing at"):
        open_reader(str(tmp_path / "none.pt"), MODEL, features=6, seed=0, who="hp_dval")
    folder = tmp_path / "folder"
    shutil.copytree(clip[2] / "folder", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    with pytest.raises(InputError, match="clip model with its text half, got model_type 'siglip'"):
        folder_reader(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {"hidden_act": "relu"}}))
    with pytest.raises(InputError, match="hidden_act 'relu'"):
        folder_reader(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if not n.startswith("text_")}, folder / "model.safetensors")
    with pytest.raises(InputError, match="text half of a CLIP model, got no words"):
        folder_reader(str(folder))
    del state["text_model.encoder.layers.1.self_attn.v_proj.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"1 of another shape \(blocks.1.attn.qkv.bias"):
        folder_reader(str(folder))


def test_contexts_of_single_labels_are_read_like_shared_ones(monkeypatch):
    learner = PromptLearner(random_reader(10, seed=3), NAMES, "a {}", 2)
    own = torch.randn(2, 3, 2, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()

    found = learner(own)

    for each in range(3):
        torch.testing.assert_close(found[:, each], learner(own[:, each])[:, each], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(found[0, 1].square().sum(), own)
    assert (gradient != 0).flatten(2).any(dim=2).tolist() == [[False, True, False], [False, False, False]]
    monkeypatch.setattr(prompt_learner, "PART", 2)
    torch.testing.assert_close(learner(own), found, rtol=1e-4, atol=1e-5)

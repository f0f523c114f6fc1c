"""The small diffusion model that a benchmark trains: its folder, what it saw, and the scores of places."""

import json
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score
from torch import nn

from fedmlic import spec
from fedmlic.diffusion import alphas, noise_of
from fedmlic.errors import InputError
from fedmlic.pixel_scale import to_float
from sim.commands.settings import read_recipe
from sim.sweep.start import STUDIES
from sim.sweep.study import check_study, read_study, rows_of

diffusers = pytest.importorskip("diffusers", reason="diffusers, an extra of 30 MB, is not installed")

STUDY = STUDIES / "ablation_diff_feat_trained.toml"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield import_module("small_dit")


@pytest.fixture(scope="module")
def tiny(script):
    return script.Sizes(
        images=60, vae_channels=(8, 8), vae_steps=3, depth=3, width=16, head=8, steps=4, batch=4, seed=3
    )


@pytest.fixture(scope="module")
def folder(script, tiny, tmp_path_factory):
    """A pipeline's folder after a few steps of tiny networks, and the report beside it."""
    path = tmp_path_factory.mktemp("small_dit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMLIC_HOME", str(path / "home"))
        patch.setattr(script, "PICTURES", script.PICTURES.replace("num_test=256", "num_test=48"))
        report = script.train(path / "made", tiny)
    return path / "made", report


@pytest.mark.slow
def test_dit_reads_the_folder_and_gives_features_of_diffusers_own_forward_pass(folder):
    path, _ = folder
    pipeline = diffusers.DiTPipeline.from_pretrained(path, local_files_only=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    images, steps, seen = to_float(pixels), torch.full((3,), 250), []
    blocks = pipeline.transformer.eval().transformer_blocks
    hooks = [block.register_forward_hook(lambda *given: seen.append(given[2].mean(dim=1))) for block in blocks]

    with torch.no_grad():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = pipeline.vae.eval().encode(scaled).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noisy = pipeline.scheduler.add_noise(latents, noise_of(images, latents.shape[1:], 0, 250), steps)
        null = torch.full((3,), pipeline.transformer.config.num_embeds_ada_norm)
        pipeline.transformer(noisy, timestep=steps, class_labels=null)
        backbone = spec.build("model", f"dit(path={str(path)!r}, depth=3)").build(3)
        found = backbone.at(images, [0, 1, 2], 250)
    for hook in hooks:
        hook.remove()

    torch.testing.assert_close(found, torch.stack(seen, dim=1))
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, alphas().float())


@pytest.mark.slow
def test_only_the_label_that_stands_for_none_is_trained_and_the_untrained_twin_lies_beside(folder):
    path, report = folder
    trained, before = (
        diffusers.DiTTransformer2DModel.from_pretrained(each / "transformer", local_files_only=True)
        for each in (path, path / "untrained")
    )

    for new, old in zip(trained.transformer_blocks, before.transformer_blocks, strict=True):
        rows, drawn = (each.norm1.emb.class_embedder.embedding_table.weight for each in (new, old))
        assert rows.shape == (2, 16)
        torch.testing.assert_close(rows[0], drawn[0], rtol=0, atol=0)
        assert not torch.equal(rows[1], drawn[1])
        assert not torch.equal(new.attn1.to_q.weight, old.attn1.to_q.weight)
    spec.build("model", f"dit(path={str(path / 'untrained')!r}, vae={str(path / 'vae')!r}, depth=3)").build(3)
    assert json.loads((path / "losses.json").read_text())["noise_mse"] == report["noise_mse"]
    assert all(0 < each < 2 for each in report["noise_mse"].values())
    assert (path / "look.png").stat().st_size > 1000


@pytest.mark.slow
def test_latents_have_a_spread_of_one_and_are_those_of_dit(script, tiny, folder, tmp_path, monkeypatch):
    path, _ = folder
    monkeypatch.setenv("FEDMLIC_HOME", str(tmp_path))
    corpus = script.corpus_of(tiny)
    rows = np.asarray(corpus.splits["train"])
    vae = diffusers.AutoencoderKL.from_pretrained(path / "vae", local_files_only=True)

    latents = script.latents_of(vae, corpus, rows)

    assert float(latents.std()) == pytest.approx(1, abs=1e-3)
    backbone = spec.build("model", f"dit(path={str(path)!r})").build(3)
    with torch.no_grad():
        torch.testing.assert_close(latents, backbone.latents(to_float(corpus.images.take(rows))), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_places_are_scored_as_scikit_learn_scores_them(script, folder, tmp_path, monkeypatch, capsys):
    path, _ = folder
    monkeypatch.setenv("FEDMLIC_HOME", str(tmp_path / "home"))
    study = tmp_path / "study.toml"
    dataset = "scenes(preset='tiny', num_images=200, val_fraction=0.3, num_test=80, colour_reliability=1.0)"
    study.write_text(f'[base]\ndataset = "{dataset}"\n')
    monkeypatch.setattr(script, "STUDY", study)

    places = script.grid(str(path), "", (0, 100))
    script.show(places)

    assert {(each.block, each.timestep, each.alpha) for each in places} == {
        (block, timestep, alpha) for block in range(3) for timestep in (0, 100) for alpha in script.ALPHAS
    }
    found = next(each for each in places if each[:3] == (1, 100, 10.0))
    corpus = script.open_corpus(spec.build("dataset", dataset))
    backbone = spec.build("model", f"dit(path={str(path)!r}, block=1, timestep=100)").build(3)
    with torch.no_grad():
        features = backbone(to_float(corpus.images.take(np.arange(corpus.num_images))))[..., 0, 0].double().numpy()
    labels = corpus.labels.take(np.arange(corpus.num_images))
    train, val, test = (list(corpus.splits[split]) for split in ("train", "val", "test"))
    features = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
    model = Ridge(alpha=10.0).fit(features[train], 2.0 * labels[train] - 1)
    for rows, value in ((val, found.val), (test, found.test)):
        scores = model.predict(features[rows])
        usable = [label for label in range(labels.shape[1]) if 0 < labels[rows, label].sum() < len(rows)]
        expected = [average_precision_score(labels[rows, label], scores[:, label]) for label in usable]
        assert value == pytest.approx(np.mean(expected), abs=1e-9)
    assert "test mAP of 6 places" in capsys.readouterr().out


def test_noise_is_mixed_as_diffusers_mixes_it_and_predicting_nothing_has_loss_one(script):
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(64, 4, 8, 8, generator=generator) for _ in range(2))
    steps = torch.arange(0, 1000, 16)[:64].clamp(max=999)
    steps = torch.cat([steps, torch.full((64 - len(steps),), 999)])

    scheduler = script.scheduler_of("DDPMScheduler")

    torch.testing.assert_close(script.mixed(latents, noise, steps), scheduler.add_noise(latents, noise, steps))

    class Nothing(nn.Module):
        config = type("Config", (), {"num_embeds_ada_norm": 1})

        def forward(self, noisy, **_):
            return type("Output", (), {"sample": torch.zeros_like(noisy)})

    assert script.losses_of(Nothing(), latents, 0) == pytest.approx(
        dict.fromkeys(["0", "10", "50", "100", "200", "300", "500", "700", "999"], 1.0), abs=0.05
    )


def test_alpha_is_chosen_on_validation_pictures_where_the_search_begins(script):
    places = [
        script.Place(2, 100, 1.0, 0.9, 0.3, 0.9),
        script.Place(2, 100, 10.0, 0.1, 0.4, 0.1),
        script.Place(3, 100, 100.0, 0.9, 0.9, 0.9),
    ]

    assert script.chosen_alpha(places, 6) == 10.0


def test_the_study_looks_at_other_pictures_of_the_same_look_and_at_blocks_that_there_are(script):
    sizes = script.Sizes()
    trained_on = spec.parse(script.PICTURES.format(seed=sizes.seed, images=1, owners=1), "dataset").arguments
    study = tomllib.loads(STUDY.read_text(encoding="utf-8"))
    judged_on = spec.parse(study["base"]["dataset"], "dataset").arguments

    assert trained_on["seed"] != judged_on.get("seed", 0)
    apart = {"seed", "num_images", "num_test", "val_fraction", "population", "owner_sizes"}
    assert {k: v for k, v in trained_on.items() if k not in apart} == {
        k: v for k, v in judged_on.items() if k not in apart
    }
    texts = {row["name"]: row.get("model", study["base"]["model"]) for row in study["axes"]["place"]}
    searched = spec.parse(study["axes"]["place"][0]["method"], "method").arguments
    assert f"block={int(12 / 28 * sizes.depth)}, timestep=100" in texts["paper: block 2, timestep 100"]
    assert (searched["start_block"], searched["start_timestep"]) == (int(12 / 28 * sizes.depth), 100)
    assert f"block={sizes.depth - 1}, timestep=0" in texts["naive: block 5, timestep 0"]
    assert f"depth={sizes.depth}" in texts["searched"]
    assert f"depth={sizes.depth}" in texts["searched, transformer untrained"]


def test_without_the_weights_every_row_of_the_study_says_which_folder_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = rows_of(check_study(read_study(STUDY, read_recipe)))

    assert len(rows) == 5
    for row in rows:
        with pytest.raises(InputError, match=r"Expected 'weights/small_dit.* to be the folder of a DiT"):
            spec.build("model", row.settings["model"])

"""The diffusion transformer's features against diffusers' own forward pass, from folders as it saves them."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

from fedmlic import spec
from fedmlic.diffusion import KeptFeatures, TextTable, alphas, image_hashes, noise_of, write_texts
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.features import obstacle_in_backbone, obstacle_in_behaviour
from fedmlic.pixel_scale import to_float
from fedmlic.pretrained import freeze
from fedmlic.seeds import torch_global_stream

WITHOUT = importlib.util.find_spec("diffusers") is None
needs_diffusers = pytest.mark.skipif(WITHOUT, reason="diffusers, an extra of 30 MB, is not installed")


def pixels(count=3, side=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def built(text="dit()", seed=0):
    with torch_global_stream(seed, "init"):
        return spec.build("model", text).build(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline's folder with tiny random networks, saved by diffusers."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers, an extra of 30 MB, is not installed")
    from fedmlic.models.dit import TRIAL

    path = tmp_path_factory.mktemp("dit")
    torch.manual_seed(1)
    diffusers.DiTTransformer2DModel(**TRIAL["transformer"]).save_pretrained(path / "transformer")
    diffusers.AutoencoderKL(**TRIAL["vae"]).save_pretrained(path / "vae")
    return path


@needs_diffusers
def test_features_are_those_of_diffusers_own_forward_pass(folder):
    import diffusers

    images = to_float(pixels())
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(folder / "transformer", local_files_only=True).eval()
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).eval()
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )
    seen = []
    hooks = [
        block.register_forward_hook(lambda *given: seen.append(given[2])) for block in transformer.transformer_blocks
    ]
    steps, noise = torch.full((3,), 100), noise_of(images, (4, 8, 8), 0, 100)
    with torch.no_grad():
        scaled = torch.from_numpy(pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = vae.encode(scaled).latent_dist.mode() * vae.config.scaling_factor
        transformer(scheduler.add_noise(latents, noise, steps), timestep=steps, class_labels=torch.full((3,), 10))
        backbone = built(f"dit(path={str(folder)!r}, block=2, depth=4)")
        found = backbone.at(images, [3, 0], 100)
        pooled = backbone(images)
        places = built(f"dit(path={str(folder)!r}, block=2, features='places')")(images)
    for hook in hooks:
        hook.remove()

    torch.testing.assert_close(found, torch.stack([seen[3].mean(dim=1), seen[0].mean(dim=1)], dim=1))
    torch.testing.assert_close(pooled[..., 0, 0], seen[2].mean(dim=1))
    torch.testing.assert_close(places.flatten(2).transpose(1, 2), seen[2])
    assert pooled.shape == (3, 32, 1, 1)
    assert places.shape == (3, 32, 4, 4)
    torch.testing.assert_close(alphas().float(), scheduler.alphas_cumprod)


@needs_diffusers
@pytest.mark.parametrize(
    ("part", "changes"), [("transformer", {"attention_bias": False}), ("vae", {"scaling_factor": 0.5})]
)
def test_the_source_tells_of_both_networks_settings(folder, tmp_path, part, changes):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    before = spec.build("model", f"dit(path={str(copied)!r})")
    file = copied / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    after = spec.build("model", f"dit(path={str(copied)!r})")

    assert before.content == spec.build("model", f"dit(path={str(folder)!r})").content != after.content
    assert after.content.count("sha256:") == 3


@needs_diffusers
def test_training_mode_changes_nothing_and_maps_can_be_kept():
    backbone, images = built(), to_float(pixels(2))
    freeze(backbone, {name for name, _ in backbone.named_parameters()})

    assert torch.equal(backbone.train()(images), backbone.eval()(images))
    assert obstacle_in_behaviour(backbone, images) == ""
    assert obstacle_in_backbone(Experiment(model="dit()"), backbone) == ""


@needs_diffusers
def test_parts_that_features_do_not_need_are_not_there():
    names = [name for name, _ in built("dit(block=1)").named_parameters()]

    unused = ("vae.decoder", "vae.post_quant", "transformer.norm_out", "transformer.proj_out")
    assert not [name for name in names if name.startswith(unused)]
    assert {name.split(".")[2] for name in names if "transformer_blocks" in name} == {"0", "1"}
    assert built("dit(block=1, depth=4)").num_blocks == 4


@needs_diffusers
def test_draws_of_noise_are_averaged_and_another_seed_is_another_noise():
    images = to_float(pixels(2))
    with torch.no_grad():
        two, other = built("dit(draws=2)")(images), built("dit(noise_seed=1)")(images)
        one = built()(images)

    assert not torch.allclose(two, one)
    assert not torch.allclose(other, one)


@needs_diffusers
def test_kept_features_are_computed_once():
    backbone = built("dit(depth=4)").eval()
    kept, images = KeptFeatures(backbone), to_float(pixels(4))

    first = kept.at(images[:3], [1, 3], 50)
    again = kept.at(images, [3], 50)

    torch.testing.assert_close(first, backbone.at(images[:3], [1, 3], 50).detach())
    torch.testing.assert_close(again[:3, 0], first[:, 1])
    assert kept.computed == 4
    kept.at(images, [3], 60)
    assert kept.computed == 8
    small = KeptFeatures(backbone, most=2 * 32 * 4)
    for _ in range(2):
        torch.testing.assert_close(small.at(images, [3], 50), again)
    assert small.computed >= 6


@needs_diffusers
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dit(path='{folder}/nothing')", "no config.json"),
        ("dit(path='{folder}/vae', vae='{folder}/vae')", "to describe a DiTTransformer2DModel, got a AutoencoderKL"),
        ("dit(path='{folder}', vae='{folder}/transformer')", "to describe a AutoencoderKL"),
        ("dit(path='{folder}', block=4)", "block of dit to be 0 to 3"),
        ("dit(path='{folder}', block=1, depth=5)", "depth at most 4"),
        ("dit(vae='{folder}/vae')", "vae of dit to come with path"),
        ("dit(path='{folder}', trainable='last(9)')", r"at most 'last\(5\)'"),
    ],
)
def test_what_is_wrong_is_said(folder, text, message):
    with pytest.raises(InputError, match=message):
        spec.build("model", text.format(folder=folder))


@needs_diffusers
def test_a_folder_without_weights_names_the_file_to_get(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()

    with pytest.raises(InputError, match=r"one of diffusion_pytorch_model.safetensors"):
        spec.build("model", f"dit(path={str(tmp_path / 'copy')!r})")


@pytest.mark.skipif(not WITHOUT, reason="diffusers is installed")
def test_without_diffusers_the_extra_is_named():
    with pytest.raises(InputError, match=r"fedmlic\[diffusion\]"):
        spec.build("model", "dit()")


def test_noise_belongs_to_an_image_a_timestep_and_a_draw():
    images = to_float(pixels(3))
    noise = noise_of(images, (4, 8, 8), 0, 100)

    assert torch.equal(noise[1:], noise_of(images[1:], (4, 8, 8), 0, 100))
    for other in (noise_of(images, (4, 8, 8), 1, 100), noise_of(images, (4, 8, 8), 0, 101)):
        assert not torch.allclose(noise, other)
    assert not torch.allclose(noise, noise_of(images, (4, 8, 8), 0, 100, draw=1))
    assert not torch.allclose(noise[0], noise[1])
    many = noise_of(to_float(pixels(40, side=8)), (4, 8, 8), 0, 100)
    assert abs(float(many.mean())) < 0.05
    assert abs(float(many.std()) - 1) < 0.05


def test_texts_are_found_by_the_pixels_of_their_images(tmp_path):
    images, vectors = pixels(4), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    write_texts(tmp_path / "texts.npz", images, vectors)

    table = TextTable.read(str(tmp_path / "texts.npz"))

    assert table.width == 5
    np.testing.assert_array_equal(table(to_float(images[[2, 0]])).numpy(), vectors[[2, 0]])
    with pytest.raises(InputError, match="1 of 2 without"):
        table(to_float(np.concatenate([images[:1], pixels(1, seed=9)])))
    with pytest.raises(InputError, match="write_texts"):
        TextTable.read(str(tmp_path / "none.npz"))
    with pytest.raises(InputError, match="vector for each of 4"):
        write_texts(tmp_path / "texts.npz", images, vectors[:2])
    assert len(set(image_hashes(to_float(images)))) == 4

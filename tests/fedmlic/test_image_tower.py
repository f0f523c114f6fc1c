"""CLIP's and SigLIP's image towers against transformers, against timm, and against recorded numbers of transformers."""

import functools
import importlib.util
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.features import _identity, features_key
from fedmlic.model import TokenBackbone

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
CONFIGS = {
    "clip": {"model_type": "clip", "projection_dim": 12, "vision_config": VISION, "text_config": TEXT},
    "siglip": {"model_type": "siglip", "vision_config": VISION, "text_config": TEXT},
}


def names_and_shapes(family):
    """What transformers saves of a tower, in its order."""
    width, hidden = VISION["hidden_size"], VISION["intermediate_size"]
    found = {"embeddings.patch_embedding.weight": (width, 3, 8, 8)}
    if family == "clip":
        found |= {"embeddings.class_embedding": (width,), "embeddings.position_embedding.weight": (17, width)}
        found |= {f"pre_layrnorm.{part}": (width,) for part in ("weight", "bias")}
    else:
        found |= {"embeddings.patch_embedding.bias": (width,), "embeddings.position_embedding.weight": (16, width)}
    for number in range(VISION["num_hidden_layers"]):
        layer = f"encoder.layers.{number}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= {f"{layer}self_attn.{part}.weight": (width, width), f"{layer}self_attn.{part}.bias": (width,)}
        found |= {f"{layer}layer_norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
        found |= {f"{layer}mlp.fc1.weight": (hidden, width), f"{layer}mlp.fc1.bias": (hidden,)}
        found |= {f"{layer}mlp.fc2.weight": (width, hidden), f"{layer}mlp.fc2.bias": (width,)}
    found |= {f"post_layernorm.{part}": (width,) for part in ("weight", "bias")}
    if family == "siglip":
        found |= {"head.probe": (1, 1, width), "head.attention.in_proj_weight": (3 * width, width)}
        found |= {"head.attention.in_proj_bias": (3 * width,), "head.attention.out_proj.weight": (width, width)}
        found |= {
            f"head.{name}": (width,) for name in ("attention.out_proj.bias", "layernorm.weight", "layernorm.bias")
        }
        found |= {"head.mlp.fc1.weight": (hidden, width), "head.mlp.fc1.bias": (hidden,)}
        found |= {"head.mlp.fc2.weight": (width, hidden), "head.mlp.fc2.bias": (width,)}
    return found


def tensors_of(family):
    """The same numbers on every machine, none of them special."""
    found = {}
    for number, (name, shape) in enumerate(names_and_shapes(family).items()):
        values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * (1.7 + 0.1 * number) + number)
        found[f"vision_model.{name}"] = (0.3 * values + (1.0 if "norm" in name and "weight" in name else 0.0)).float()
        found[f"vision_model.{name}"] = found[f"vision_model.{name}"].reshape(shape)
    if family == "clip":
        values = torch.sin(torch.arange(12 * 24, dtype=torch.float64))
        found["visual_projection.weight"] = (0.3 * values).float().reshape(12, 24)
        found["text_model.final_layer_norm.weight"] = torch.ones(8)
        found["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # old checkpoints have it
    found["logit_scale"] = torch.ones(() if family == "clip" else (1,))
    return found


def written(folder, family, kind="model.safetensors", config=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIGS[family]))
    state = tensors_of(family)
    if kind == "model.safetensors":
        save_file(state, folder / kind)
    elif kind == "pytorch_model.bin":
        torch.save({name: tensor.half() if tensor.ndim else tensor for name, tensor in state.items()}, folder / kind)
    else:
        halves = [dict(list(state.items())[start::2]) for start in (0, 1)]
        for number, half in enumerate(halves):
            save_file(half, folder / f"model-{number}.safetensors")
        places = {name: f"model-{number}.safetensors" for number, half in enumerate(halves) for name in half}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: written(tmp_path_factory.mktemp("towers") / family, family) for family in CONFIGS}


def pictures(side=32):
    """uint8 ``[2, side, side, 3]``."""
    values = np.sin(np.arange(2 * side * side * 3) * 0.37) * 120 + 128
    return torch.from_numpy(values.astype(np.uint8).reshape(2, side, side, 3))


def ours(images):
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 63.75


MEANS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def prepared(images, family):
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in MEANS[family])
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def features_of(family, path, images, **options):
    text = ", ".join(f"{name}={value!r}" for name, value in {"path": path, **options}.items())
    network = spec.build("model", f"{family}_image({text})").build(images.shape[1]).eval()
    assert isinstance(network, TokenBackbone)
    with torch.no_grad():
        found = network(images)
    assert found.shape[1] == network.num_features
    return found


RECORDED = {
    ("clip", "pooled", False): [0.086758, -0.033428, -1.291545, 0.466587],
    ("clip", "pooled", True): [-0.85731, 0.152618, 0.986785, 0.684529],
    ("clip", "patches", False): [-1.408237, -0.30611, 0.200488, 0.331554],
    ("siglip", "pooled", False): [0.346733, 0.21183, 0.259952, -0.607721],
    ("siglip", "patches", False): [-1.236908, -1.082151, -0.14862, -1.337015],
}
"""The first four numbers of the first image by transformers 5.24; of patches, of the last one after the last norm."""


def by_transformers(family, path, images):
    """The same by the library: pooled, projected, patches after the last norm."""
    import transformers

    kind = transformers.CLIPModel if family == "clip" else transformers.SiglipModel
    state = {n: t for n, t in load_file(f"{path}/model.safetensors").items() if not n.startswith("text_model")}
    state.pop("vision_model.embeddings.position_ids", None)
    network = kind(kind.config_class(**CONFIGS[family])).eval()
    missing = network.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if "vis" in name]
    with torch.no_grad():
        found = network.vision_model(pixel_values=prepared(images, family))
        places = found.last_hidden_state
        projected = network.visual_projection(found.pooler_output) if family == "clip" else None
        if family == "clip":
            places = network.vision_model.post_layernorm(places[:, 1:])
    return found.pooler_output, projected, places


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="compares with the library transformers"
)


@needs_transformers
@pytest.mark.parametrize("family", CONFIGS)
def test_a_tower_is_that_of_transformers(folders, family):
    images, path = pictures(), folders[family]
    pooled, projected, places = by_transformers(family, path, images)

    found = features_of(family, path, ours(images), features="pooled")
    torch.testing.assert_close(found[:, :, 0, 0], pooled, rtol=0, atol=2e-5)
    found = features_of(family, path, ours(images))
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), places, rtol=0, atol=2e-5)
    if projected is not None:
        found = features_of(family, path, ours(images), features="pooled", projection=True)
        torch.testing.assert_close(found[:, :, 0, 0], projected, rtol=0, atol=2e-5)


@needs_transformers
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("whole", [True, False])
def test_folders_that_transformers_saves_are_read(tmp_path, family, whole):
    import transformers

    names = {"clip": ("CLIPModel", "CLIPVisionModel"), "siglip": ("SiglipModel", "SiglipVisionModel")}[family]
    kind = getattr(transformers, names[0 if whole else 1])
    network = kind(kind.config_class(**(CONFIGS[family] if whole else VISION))).eval()
    network.save_pretrained(tmp_path)
    with torch.no_grad():
        inside = network.vision_model if whole else network
        expected = inside(pixel_values=prepared(pictures(), family)).pooler_output

    found = features_of(family, str(tmp_path), ours(pictures()), features="pooled")[:, :, 0, 0]

    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("family", "features", "projection"), RECORDED)
def test_a_tower_gives_recorded_numbers(folders, family, features, projection):
    options = {"features": features, **({"projection": True} if projection else {})}

    found = features_of(family, folders[family], ours(pictures()), **options)[0, :4, -1, -1]

    assert found.tolist() == pytest.approx(RECORDED[family, features, projection], abs=2e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_tower_is_timms_also_at_another_size(folders, family):
    timm = pytest.importorskip("timm")
    from timm.layers import QuickGELU

    clip, state = family == "clip", tensors_of(family)
    network = timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=40 / 24,
        class_token=clip,
        pre_norm=clip,
        global_pool="token" if clip else "map",
        act_layer=QuickGELU if clip else "gelu_tanh",
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5 if clip else 1e-6),
        num_classes=0,
        dynamic_img_size=True,
    ).eval()
    ours_by_theirs = {"patch_embed.proj.weight": "embeddings.patch_embedding.weight"}
    ours_by_theirs |= {f"norm.{p}": f"post_layernorm.{p}" for p in ("weight", "bias")}
    if clip:
        ours_by_theirs |= {f"norm_pre.{p}": f"pre_layrnorm.{p}" for p in ("weight", "bias")}
    else:
        ours_by_theirs["patch_embed.proj.bias"] = "embeddings.patch_embedding.bias"
    own = {name: state[f"vision_model.{theirs}"] for name, theirs in ours_by_theirs.items()}
    own["pos_embed"] = state["vision_model.embeddings.position_embedding.weight"][None]
    if clip:
        own["cls_token"] = state["vision_model.embeddings.class_embedding"][None, None]
    for number in range(2):
        there, here = f"vision_model.encoder.layers.{number}.", f"blocks.{number}."
        for part in ("weight", "bias"):
            own[f"{here}attn.qkv.{part}"] = torch.cat([state[f"{there}self_attn.{x}_proj.{part}"] for x in "qkv"])
            own[f"{here}attn.proj.{part}"] = state[f"{there}self_attn.out_proj.{part}"]
            for n in (1, 2):
                own[f"{here}norm{n}.{part}"] = state[f"{there}layer_norm{n}.{part}"]
                own[f"{here}mlp.fc{n}.{part}"] = state[f"{there}mlp.fc{n}.{part}"]
    network.load_state_dict(own, strict=clip)

    for side in (32, 48):
        with torch.no_grad():
            expected = network.forward_features(prepared(pictures(side), family))[:, int(clip) :]
        found = features_of(family, folders[family], ours(pictures(side)), image_size=side)
        assert found.shape == (2, 24, side // 8, side // 8)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_the_other_files_of_weights(folders, tmp_path, kind):
    path = written(tmp_path / "other", "clip", kind)
    expected = features_of("clip", folders["clip"], ours(pictures()))

    found = features_of("clip", path, ours(pictures()))

    if kind == "pytorch_model.bin":  # numbers of 16 bits
        assert 0 < (found - expected).abs().max() < 0.05
    else:
        assert torch.equal(found, expected)
    source = spec.build("model", f"clip_image(path={path!r})").source
    assert re.fullmatch(r"other sha256:[0-9a-f]{12} config\.json sha256:[0-9a-f]{12}", source)


PREPROCESSOR = {
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5, 0.6, 0.7],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 36},
}


@pytest.mark.parametrize(
    ("changes", "cut"),
    [
        ({}, True),
        ({"size": 36, "crop_size": 32}, True),
        ({"do_center_crop": False, "size": {"height": 32, "width": 32}, "resample": 2}, False),
    ],
)
def test_images_are_prepared_as_the_folder_says(tmp_path, changes, cut):
    path = written(tmp_path / "clip", "clip")
    settings = {**PREPROCESSOR, **changes}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    stored = np.random.default_rng(0).integers(40, 220, (48, 60, 3), dtype=np.uint8)
    how = Image.Resampling(settings["resample"])
    if cut:
        picture = Image.fromarray(stored).resize((36 * 60 // 48, 36), how)
        left, top = (picture.width - 32) // 2, 2
        picture = picture.crop((left, top, left + 32, top + 32))
    else:
        picture = Image.fromarray(stored).resize((32, 32), how)
    expected = (torch.from_numpy(np.array(picture)).float() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor(
        [0.5, 0.6, 0.7]
    )

    network = spec.build("model", f"clip_image(path={path!r})").build(3)
    found = network.pixels(ours(torch.from_numpy(stored)[None]))[0].permute(1, 2, 0)

    # Pillow rounds to whole bytes, after each of its two passes.
    assert found.shape == (32, 32, 3)
    assert (found - expected).abs().max() <= 1.01 / 255 / 0.5


def prepared_by(folder, files):
    """What a folder with these further files makes of two images of 40 pixels."""
    path = written(folder, "clip")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    images = ours(pictures(40))
    return spec.build("model", f"clip_image(path={path!r})").build(3).pixels(images)


def test_settings_that_transformers_5_saves_are_those_of_earlier_versions(tmp_path):
    inside = {"image_processor": PREPROCESSOR, "processor_class": "CLIPProcessor"}
    earlier = {"processor_class": "CLIPProcessor"}
    expected = prepared_by(tmp_path / "a", {"preprocessor_config.json": PREPROCESSOR})

    found = prepared_by(tmp_path / "b", {"processor_config.json": inside})
    both = prepared_by(tmp_path / "c", {"processor_config.json": inside, "preprocessor_config.json": PREPROCESSOR})
    old = prepared_by(tmp_path / "d", {"processor_config.json": earlier, "preprocessor_config.json": PREPROCESSOR})

    assert not torch.equal(expected, prepared_by(tmp_path / "e", {"processor_config.json": earlier}))
    assert all(torch.equal(expected, each) for each in (found, both, old))


def test_settings_in_two_files_must_not_contradict_each_other(tmp_path):
    other = {"image_processor": {**PREPROCESSOR, "resample": 2}}
    with pytest.raises(InputError, match="to prepare images in the same way, got two"):
        prepared_by(tmp_path / "a", {"processor_config.json": other, "preprocessor_config.json": PREPROCESSOR})
    with pytest.raises(InputError, match=r"processor_config\.json to hold an object, got a list"):
        prepared_by(tmp_path / "b", {"processor_config.json": {"image_processor": []}})


def test_images_that_are_not_to_be_resized_or_cut_are_used_as_they_are(tmp_path):
    path = written(tmp_path / "clip", "clip")
    settings = {**PREPROCESSOR, "do_resize": False, "do_center_crop": False}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))

    found = spec.build("model", f"clip_image(path={path!r})").build(3).pixels(ours(pictures()))

    mean, std = (torch.tensor(PREPROCESSOR[key]).reshape(3, 1, 1) for key in ("image_mean", "image_std"))
    torch.testing.assert_close(found, (pictures().permute(0, 3, 1, 2) / 255 - mean) / std)


def key_of_maps(path):
    """The key of the feature maps of a folder's tower for one corpus."""
    experiment = Experiment(model=f"clip_image(path={str(path)!r}, trainable='head')", method="bce()")
    pixels = {"images.u8.npy": {"sha256": "1"}}
    corpus = SimpleNamespace(key="corpus", images=SimpleNamespace(storage="raw"), files=SimpleNamespace(files=pixels))
    backbone = spec.build("model", experiment.model).build(3)
    return features_key(_identity(experiment, corpus, backbone, "cpu"))


def test_maps_belong_to_what_a_folder_says_and_not_to_where_it_lies(tmp_path):
    folder = tmp_path / "clip"
    written(folder, "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    first = key_of_maps(folder)
    keys = {first}
    for file, part, changes in (
        ("config.json", "vision_config", {"hidden_act": "gelu"}),
        ("config.json", "vision_config", {"num_attention_heads": 2}),
        ("config.json", "vision_config", {"layer_norm_eps": 1e-3}),
        ("preprocessor_config.json", None, {"resample": 2}),
        ("preprocessor_config.json", None, {"size": {"shortest_edge": 40}}),
    ):
        before = (folder / file).read_text()
        content = json.loads(before)
        (content if part is None else content[part]).update(changes)
        (folder / file).write_text(json.dumps(content))
        keys.add(key_of_maps(folder))
        (folder / file).write_text(before)

    assert len(keys) == 6
    shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    assert key_of_maps(tmp_path / "elsewhere" / "renamed") == first == key_of_maps(folder)


def test_pixels_that_no_patch_holds_are_cut_off_as_there(tmp_path):
    config = {**CONFIGS["siglip"], "vision_config": {**VISION, "image_size": 37}}
    path = written(tmp_path / "siglip", "siglip", config=config)
    images = torch.nn.functional.pad(ours(pictures()), (0, 5, 0, 5), value=9.0)

    found = features_of("siglip", path, images)

    assert found.shape == (2, 24, 4, 4)
    torch.testing.assert_close(found, features_of("siglip", path, images[:, :, :32, :32], image_size=32))


def test_grey_images_are_three_equal_channels_and_tensors_train(folders):
    grey = ours(pictures())[:, :1]

    torch.testing.assert_close(
        features_of("clip", folders["clip"], grey), features_of("clip", folders["clip"], grey.repeat(1, 3, 1, 1))
    )
    network = spec.build("model", f"clip_image(path={folders['clip']!r}, trainable='last(1)', projection=True)").build(
        3
    )
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"blocks", "norm", "projection"}
    assert not network.blocks[0].attn.qkv.weight.requires_grad


def refused(path, family="clip"):
    with pytest.raises(InputError) as caught:
        spec.build("model", f"{family}_image(path={str(path)!r})").build(3)
    return str(caught.value)


def test_what_is_not_such_a_folder_is_refused(folders, tmp_path):
    assert "got no config.json" in refused(tmp_path)
    assert "Use model siglip_image" in refused(folders["siglip"])
    (tmp_path / "config.json").write_text("{")
    assert "to be JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "to hold an object" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    assert "model_type 'resnet'. Others may be in timm" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["clip"]))
    assert "CLIP's ResNets" in refused(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    assert "../other.safetensors" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": 25}, "num_attention_heads to divide"),
        ({"patch_size": "8"}, "patch_size to be a whole number"),
        ({"hidden_act": "swish"}, "hidden_act to be one of"),
        ({"num_channels": 1}, "num_channels to be 3"),
        ({"num_hidden_layers": 3}, "missing (blocks.2.attn.proj.bias"),
        ({"image_size": 64}, "of another shape (pos_embed"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, changes, match):
    config = {**CONFIGS["clip"], "vision_config": {**VISION, **changes}}

    assert match in refused(written(tmp_path / "clip", "clip", config=config))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_mean": [0.5]}, "image_mean to be three numbers"),
        ({"do_rescale": False}, "rescale_factor to be 1/255"),
        ({"rescale_factor": 1.0}, "rescale_factor to be 1/255"),
        ({"resample": 0}, "resample to be 2"),
        ({"crop_size": {"height": 32, "width": 16}}, "crop_size to be square"),
        ({"size": {"shortest_edge": 16}}, "crop_size to be square"),
        ({"do_resize": False}, "do_resize to be true with do_center_crop"),
    ],
)
def test_preparations_that_are_unknown_are_refused(tmp_path, changes, match):
    path = written(tmp_path / "clip", "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **changes}))

    assert match in refused(path)


def test_from_scratch_it_is_small_and_says_so():
    for family in CONFIGS:
        model = spec.build("model", f"{family}_image()")
        assert model.source == "scratch"
        assert sum(p.numel() for p in model.build(3).parameters()) < 1_000_000

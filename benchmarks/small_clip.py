"""Train a small CLIP on captioned scenes: a text half that knows the words of the scene generator's labels.

Pictures are the generator's, of owners and a seed that no study uses, with all labels about equally frequent and hues
that say nothing. A caption names the objects in random order behind one of several beginnings ("a photo of a dotted
star and a plain heart"), now and then a part of them only. Image and text halves are FedMLIC's own
(``fedmlic.image_tower``, ``fedmlic.prompt_learner``), the loss is CLIP's: cross-entropy over the pictures and over the
captions of a batch. Words are split by open_clip's tokenizer, so the extra ``clip`` is needed.

The folder is in Hugging Face's format (config.json, model.safetensors, preprocessor_config.json):
``clip_image(path=...)`` reads its image half, ``hp_dval(weights=...)`` and the other methods with prompts its text
half. At the end the folder is opened by these two readers, and pictures of nobody are scored by the hand-written
prompt alone (zero-shot).

    OMP_NUM_THREADS=1 uv run --extra clip python benchmarks/small_clip.py weights/small_clip
    uv run --extra clip python benchmarks/small_clip.py weights/small_clip --zero-shot "scenes(preset='small')"

Rows of the table of words that no caption uses stay as they were drawn. Source: Radford et al. 2021, "Learning
Transferable Visual Models From Natural Language Supervision" (ICML); here 32 pixels, and thousands of pictures where
CLIP had 400 million.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from fedmlic.corpus import Corpus, open_corpus
from fedmlic.image_tower import ImageTower, Tower
from fedmlic.labels import PRESENT
from fedmlic.methods.hp_dval import Scoring, fused
from fedmlic.metrics import evaluate
from fedmlic.model import TwoViews
from fedmlic.models.clip_image import clip_image
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD
from fedmlic.pretrained import PIXELS, PixelScale
from fedmlic.prompt_learner import WORDS, PromptLearner, TextHalf, folder_reader
from fedmlic.seeds import stream, torch_global_stream
from fedmlic.spec import build
from fedmlic.vision_transformer import Shape

DATASET = (
    "scenes(preset='small', seed=4242, image_size=32, cardinality=1.3, size_log_mean=-1.35, background='plain', "
    "zipf_exponent=0.0, colour_reliability=0.0, population=500, num_images=60000, num_test=1000)"
)
BEGINNINGS = ("a photo of {}", "a picture of {}", "a drawing of {}", "there is {}", "an image with {}", "{}")
TEMPLATE = "a photo of a {}"
PARTLY = 0.25
"""Share of the captions that may leave objects out."""
LENGTH = 77
"""Most tokens of a text, as in CLIP."""
EPS = 1e-5
TOKENIZER = open_clip.SimpleTokenizer()


class SmallClip(nn.Module):
    """Both halves, to the same space.

    Args:
        options: sizes, as of the command line.
        side: pixels a side of images.
        words: rows of CLIP's table that captions use; only these are in memory and train.
    """

    def __init__(self, options: argparse.Namespace, side: int, words: Sequence[int]) -> None:
        super().__init__()
        self.options, self.side, self.words = options, side, list(words)
        width, text = options.width, options.text_width
        self.shape = Shape(
            width,
            options.depth,
            width // 32,
            4 * width,
            options.patch,
            side // options.patch,
            norm_first=True,
            patch_bias=False,
            eps=EPS,
            activation="quick_gelu",
            pad=False,
        )
        tower = Tower(self.shape, options.features, *PIXELS["clip"], side=side)
        scale = PixelScale(tower.mean, tower.std)
        self.image = ImageTower(3, tower, scale, "pooled", projection=True, family="clip")
        text_shape = Shape(
            text, options.text_depth, text // 32, 4 * text, patch=1, grid=1, eps=EPS, activation="quick_gelu"
        )
        self.text = TextHalf(text_shape, LENGTH, options.features).requires_grad_()
        self.table = nn.Embedding(len(words), text)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._start()

    def _start(self) -> None:
        """CLIP's deviations, which grow as the width falls."""
        width, text = self.options.width, self.options.text_width
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.text.positions, std=0.01)
        nn.init.normal_(self.text.projection, std=text**-0.5)
        for name in ("cls_token", "pos_embed", "projection.weight"):
            nn.init.normal_(self.image.get_parameter(name), std=width**-0.5)
        for blocks, size in ((self.image.blocks, width), (self.text.blocks, text)):
            last = (2 * size * len(blocks)) ** -0.5
            stds = {"attn.qkv": size**-0.5, "attn.proj": last, "mlp.fc1": (2 * size) ** -0.5, "mlp.fc2": last}
            for block in blocks:
                for name, std in stds.items():
                    nn.init.normal_(block.get_parameter(f"{name}.weight"), std=std)
                    nn.init.zeros_(block.get_parameter(f"{name}.bias"))

    def forward(self, images: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """CLIP's loss, a scalar.

        Args:
            images: ``[batch, 3, side, side]``, on FedMLIC's scale.
            tokens: int64 ``[batch, tokens]``, places in ``words``, with start and end.
            ends: int64 ``[batch]``, where each end is.
        """
        pictures = F.normalize(self.image(images).flatten(1), dim=1)
        captions = F.normalize(self.text(self.table(tokens), ends), dim=1)
        logits = self.logit_scale.clamp(max=math.log(100)).exp() * pictures @ captions.T
        own = torch.arange(len(images))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def words_of(names: Sequence[str]) -> list[int]:
    """Rows of CLIP's table that captions of these labels use, start and end among them."""
    texts = [*BEGINNINGS, "a, b and c", *names]
    return sorted({WORDS - 2, WORDS - 1}.union(*(TOKENIZER.encode(text) for text in texts)))


def caption(names: Sequence[str], rng: np.random.Generator) -> str:
    """A sentence about objects, in random order, that may leave some out.

    Args:
        names: of the labels present, one or more.
        rng: of all choices.
    """
    count = int(rng.integers(1, len(names) + 1)) if rng.random() < PARTLY else len(names)
    objects = [f"a {names[number]}" for number in rng.permutation(len(names))[:count]]
    listed = " and ".join([", ".join(objects[:-1]), objects[-1]] if count > 1 else objects)
    return BEGINNINGS[int(rng.integers(len(BEGINNINGS)))].format(listed)


def read(captions: Sequence[str], words: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Places in ``words`` ``[captions, tokens]``, and where each end is ``[captions]``."""
    place, start, end = {word: number for number, word in enumerate(words)}, WORDS - 2, WORDS - 1
    rows = [[start, *TOKENIZER.encode(text)[: LENGTH - 2], end] for text in captions]
    longest = max(len(row) for row in rows)
    padded = torch.tensor([[place[word] for word in row + [end] * (longest - len(row))] for row in rows])
    return padded, torch.tensor([len(row) - 1 for row in rows])


def pixels_of(corpus: Corpus, rows: NDArray[np.int64]) -> Tensor:
    """float32 ``[rows, 3, side, side]``, on FedMLIC's scale."""
    pixels = torch.from_numpy(corpus.images.take(rows)).permute(0, 3, 1, 2).float()
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def trained(corpus: Corpus, options: argparse.Namespace) -> SmallClip:
    """A network after ``options.steps`` steps of AdamW; the rate rises for a twentieth of them, then falls (cosine)."""
    with torch_global_stream(options.seed, "small_clip/start"):
        network = SmallClip(options, corpus.image_shape[0], words_of(corpus.label_names))
    rows = np.asarray(corpus.splits["train"])
    present = corpus.labels.take(rows) == PRESENT
    rows, present = rows[present.any(axis=1)], present[present.any(axis=1)]
    decayed = [p for n, p in network.named_parameters() if p.ndim > 1 and not n.startswith("table.")]
    others = [p for n, p in network.named_parameters() if p.ndim <= 1 or n.startswith("table.")]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))
    rise = max(options.steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda n: min((n + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * max(n - rise, 0) / max(options.steps - rise, 1))),
    )
    rng = stream(options.seed, "small_clip/pictures")
    began, mean = time.monotonic(), 0.0
    for step in range(1, options.steps + 1):
        chosen = rng.choice(len(rows), options.batch, replace=False)
        captions = [caption([corpus.label_names[n] for n in np.flatnonzero(present[row])], rng) for row in chosen]
        optimiser.zero_grad()
        loss = network(pixels_of(corpus, rows[chosen]), *read(captions, network.words))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        mean += float(loss.detach())
        if step % options.show == 0 or step == options.steps:
            since = (step - 1) % options.show + 1
            print(
                f"step {step:,} of {options.steps:,}: loss {mean / since:.3f} (chance {math.log(options.batch):.3f}), "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            mean = 0.0
    return network


INSIDE = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Modules of a block: the names here and those of ``transformers``."""


def _named(half: str, blocks: nn.ModuleList) -> dict[str, Tensor]:
    """A half's blocks by the names of ``transformers``, where queries, keys and values are apart."""
    found: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        layer = f"{half}.encoder.layers.{number}"
        for part in ("weight", "bias"):
            for own, theirs in INSIDE.items():
                found[f"{layer}.{theirs}.{part}"] = block.get_parameter(f"{own}.{part}")
            for name, tensor in zip("qkv", block.get_parameter(f"attn.qkv.{part}").chunk(3), strict=True):
                found[f"{layer}.self_attn.{name}_proj.{part}"] = tensor
    return found


def tensors_of(network: SmallClip) -> dict[str, Tensor]:
    """All weights by the names of ``transformers.CLIPModel``."""
    image, text = network.image, network.text
    with torch_global_stream(network.options.seed, "small_clip/words"):
        table = 0.02 * torch.randn(WORDS, network.options.text_width)
    table[network.words] = network.table.weight.detach()
    vision = "vision_model.embeddings"
    found = {
        "logit_scale": network.logit_scale,
        f"{vision}.class_embedding": image.get_parameter("cls_token")[0, 0],
        f"{vision}.patch_embedding.weight": image.get_parameter("patch_embed.proj.weight"),
        f"{vision}.position_embedding.weight": image.get_parameter("pos_embed")[0],
        "visual_projection.weight": image.get_parameter("projection.weight"),
        "text_model.embeddings.token_embedding.weight": table,
        "text_model.embeddings.position_embedding.weight": text.positions,
        "text_projection.weight": text.projection.T,
        **_named("vision_model", image.blocks),
        **_named("text_model", text.blocks),
    }
    norms = (("vision_model.pre_layrnorm", image.norm_pre), ("vision_model.post_layernorm", image.norm))
    for name, norm in (*norms, ("text_model.final_layer_norm", text.norm)):
        found |= {f"{name}.{part}": norm.get_parameter(part) for part in ("weight", "bias")}
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def save(network: SmallClip, folder: Path) -> None:
    """Write the folder, as ``transformers`` does."""
    options, shape = network.options, network.shape
    both = {"hidden_act": shape.activation, "layer_norm_eps": EPS, "projection_dim": options.features}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": options.features,
        "vision_config": {
            **both,
            "hidden_size": shape.width,
            "intermediate_size": shape.hidden,
            "num_attention_heads": shape.num_heads,
            "num_hidden_layers": shape.depth,
            "image_size": network.side,
            "patch_size": shape.patch,
        },
        "text_config": {
            **both,
            "hidden_size": options.text_width,
            "intermediate_size": 4 * options.text_width,
            "num_attention_heads": options.text_width // 32,
            "num_hidden_layers": options.text_depth,
            "max_position_embeddings": LENGTH,
            "vocab_size": WORDS,
            "bos_token_id": WORDS - 2,
            "eos_token_id": WORDS - 1,
        },
    }
    mean, std = PIXELS["clip"]
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": network.side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": network.side, "width": network.side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(network), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def zero_shot(folder: Path, corpus: Corpus, alpha: float, top: int = 32) -> float:
    """Test mAP of a folder's hand-written prompts, read as methods read it.

    Args:
        folder: in Hugging Face's format.
        corpus: whose test images are scored.
        alpha: weight of the whole image, as in ``hp_dval``; places have the rest.
        top: places of which a label's local score is the mean.
    """
    tower = TwoViews(clip_image(path=str(folder), projection=True).build(3)).eval()
    learner = PromptLearner(folder_reader(str(folder)), corpus.label_names, TEMPLATE, 4)
    rows, texts = np.asarray(corpus.splits["test"]), learner.handwritten
    parts = np.array_split(rows, -(-len(rows) // 256))
    views = torch.cat([tower(pixels_of(corpus, part)).flatten(2).transpose(1, 2) for part in parts])
    scores = fused(views, texts, texts, Scoring(alpha, top, "cosine"), torch.tensor(1.0))
    return float(evaluate(scores.double().sigmoid().numpy(), corpus.labels.take(rows)).values["mAP"])


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the weights go; with --zero-shot, where they are")
    parser.add_argument("--dataset", default=DATASET, help="pictures and names to train on")
    parser.add_argument("--zero-shot", default="", metavar="DATASET", help="train nothing: score its test images")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=96, help="of the image half; a multiple of 32")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--text-width", type=int, default=64, help="of the text half; a multiple of 32")
    parser.add_argument("--text-depth", type=int, default=2)
    parser.add_argument("--features", type=int, default=64, help="of the space that both share")
    parser.add_argument("--show", type=int, default=50, help="steps between two lines of progress")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save, open again, score."""
    options = parsed(arguments)
    corpus = open_corpus(build("dataset", options.zero_shot or options.dataset))
    if not options.zero_shot:
        began = time.process_time()
        save(trained(corpus, options), options.folder)
        print(f"trained: {time.process_time() - began:.0f} s of processor time; saved to {options.folder}")
    prevalence = float((corpus.labels.take(np.asarray(corpus.splits["test"])) == PRESENT).mean())
    for alpha in (1.0, 0.4):
        found = zero_shot(options.folder, corpus, alpha)
        print(f"zero-shot, alpha {alpha}: test mAP {found:.3f} (prevalence {prevalence:.3f})")


if __name__ == "__main__":
    main()

"""Prompts whose first words are trained vectors, read by a frozen text half of CLIP.

A label's prompt is the row of vectors

    start, context_1 ... context_M, words of the name, words after the name, end

of which the contexts are given from outside (trained, generated, or those of a template) and all others are
rows of CLIP's table of words. The text half is CLIP's: positions are added, causal transformer blocks follow,
and the token at the end becomes the label's feature. Gradients flow through it to the contexts; its own
tensors need none and never change.

Two things make it cheaper than CLIP's own 77 tokens a prompt, and change nothing but rounding: attention looks
back only, so prompts are cut after the longest of them; and only the rows of the table that the labels use are
kept. With many labels the blocks are computed in parts of ``PART`` prompts and again in the backward pass, so
that memory does not grow with the number of labels.

Sources: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (ICML); trained
contexts: Zhou et al. 2022, "Learning to Prompt for Vision-Language Models" (IJCV, CoOp). Computed here in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedmlic.clip_text import Tower
from fedmlic.errors import InputError, installing
from fedmlic.image_tower import folder_json, source_of, weight_files
from fedmlic.pretrained import WEIGHT_SUFFIXES, load_weights, read_weights, renamed
from fedmlic.seeds import torch_global_stream
from fedmlic.vision_transformer import ACTIVATIONS, Attention, Block, Shape

PART = 256
"""Prompts that are in memory at once while gradients are computed."""

TRIAL = "a photo of a dog"
"""Compared between the network here and open_clip's."""

CLOSE = 1e-3
"""Largest difference of a feature, as a share of the largest, that counts as rounding."""

OPEN_CLIP = (
    (r"positional_embedding", "positions"),
    (r"text_projection", "projection"),
    (r"ln_final\.(\w+)", r"norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"token_embedding\.weight", "table"),
)
_LAYER = r"text_model\.encoder\.layers\.(\d+)\."
HUGGING_FACE = (
    (r"text_model\.embeddings\.position_embedding\.weight", "positions"),
    (r"text_projection\.weight", "projection"),
    (r"text_model\.final_layer_norm\.(\w+)", r"norm.\1"),
    (_LAYER + r"layer_norm(\d)\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_LAYER + r"self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"self_attn\.(\w)_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (_LAYER + r"mlp\.(fc\d)\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (r"text_model\.embeddings\.token_embedding\.weight", "table"),
)
"""From other libraries' names to those here."""

DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What a folder's ``text_config`` means where it says nothing."""


class CausalAttention(Attention):
    """Self-attention in which a token looks at itself and at those before it."""

    def forward(self, values: Tensor) -> Tensor:
        """``[prompts, tokens, width]`` to the same shape."""
        joint = self.qkv(values).reshape(*values.shape[:2], 3, self.num_heads, -1)
        queries, keys, others = joint.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, others, is_causal=True)
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class TextHalf(nn.Module):
    """CLIP's text transformer, from rows of word vectors to features; frozen.

    Args:
        shape: of the transformer; ``patch``, ``grid`` and what is of images have no say.
        length: most tokens.
        features: width of the space that images share.
    """

    def __init__(self, shape: Shape, length: int, features: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(length, shape.width))
        blocks = [Block(shape) for _ in range(shape.depth)]
        for block in blocks:
            block.attn = CausalAttention(shape.width, shape.num_heads)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(shape.width, shape.eps)
        self.projection = nn.Parameter(torch.zeros(shape.width, features))
        self.requires_grad_(requires_grad=False)

    def forward(self, values: Tensor, ends: Tensor) -> Tensor:
        """Features ``[prompts, features]``, not scaled.

        Args:
            values: ``[prompts, tokens, width]``, without positions.
            ends: int64 ``[prompts]``, where each prompt's end token is.
        """
        values = values + self.positions[: values.shape[1]]
        for block in self.blocks:
            values = block(values)
        last = values[torch.arange(len(values), device=values.device), ends]
        result: Tensor = self.norm(last) @ self.projection
        return result


class Reader(NamedTuple):
    """A text half with what turns a text into word vectors.

    Attributes:
        half: the transformer.
        table: float32 ``[words, width]``.
        tokens: rows of the table for a text, without start and end.
        start: row of the start token.
        end: row of the end token.
        source: where the weights come from.
    """

    half: TextHalf
    table: Tensor
    tokens: Callable[[str], list[int]]
    start: int
    end: int
    source: str

    @property
    def width(self) -> int:
        """Of word vectors and contexts."""
        return int(self.table.shape[1])

    @property
    def features(self) -> int:
        """Width of the space that images share."""
        return int(self.half.projection.shape[1])

    def embedded(self, text: str) -> Tensor:
        """Word vectors of a text, ``[tokens, width]``, without start and end."""
        return self.table[torch.tensor(self.tokens(text), dtype=torch.int64)]


class PromptLearner(nn.Module):
    """The labels' prompts, open at their contexts.

    Args:
        reader: the text half.
        names: of the labels; ``_`` is read as a blank.
        template: the hand-written prompt with ``{}`` for the name; what follows the name follows it in
            prompts with trained contexts too.
        num_context: M, vectors of a context; 1 or more.

    Attributes:
        template_context: ``[words, width]``, the word vectors of the template's beginning.
        handwritten: ``[labels, features]``, of length 1: of the hand-written prompts.

    Raises:
        InputError: a prompt of more tokens than the text half reads; a template without a place for names.
    """

    template_context: Tensor
    handwritten: Tensor
    _raw: Tensor
    _raw_of: Tensor
    first: Tensor
    names: Tensor
    ends: Tensor

    def __init__(self, reader: Reader, names: Sequence[str], template: str, num_context: int) -> None:
        super().__init__()
        if template.count("{}") != 1:
            msg = f"Expected template to contain {{}} once, for the name, got {template!r}."
            raise InputError(msg)
        before, after = template.split("{}")
        self.text_half = reader.half
        self.num_context = num_context
        own = reader.embedded(before.strip())
        rows = [[*reader.tokens(name.replace("_", " ") + after), reader.end] for name in names]
        _check_lengths(names, rows, max(num_context, len(own)), len(reader.half.positions))
        longest = max(len(row) for row in rows)
        padded = torch.tensor([row + [reader.end] * (longest - len(row)) for row in rows], dtype=torch.int64)
        self.register_buffer("first", reader.table[reader.start][None].clone())
        self.register_buffer("names", reader.table[padded])
        self.register_buffer("ends", torch.tensor([len(row) for row in rows], dtype=torch.int64))
        self.register_buffer("template_context", own)
        with torch.no_grad():
            raw = self(own[None])[0]
        self.register_buffer("handwritten", F.normalize(raw, dim=1))
        # Not part of the state: folders of runs that are older than these can be opened.
        self.register_buffer("_raw", raw, persistent=False)
        self.register_buffer("_raw_of", self.handwritten.clone(), persistent=False)

    @torch.no_grad()
    def handwritten_raw(self) -> Tensor:
        """``[labels, features]``: ``handwritten`` before it is scaled to length 1, as the text half gives it.

        A run's state brings its own text half; what the one it was built with gave is then of no use.
        """
        if not torch.equal(self._raw_of, self.handwritten):
            self._raw.copy_(self(self.template_context[None])[0])
            self._raw_of.copy_(self.handwritten)
        return self._raw

    def forward(self, contexts: Tensor) -> Tensor:
        """Features ``[sets, labels, features]``, not scaled, of every label behind every context.

        Args:
            contexts: ``[sets, M, width]``, or one for every label: ``[sets, labels, M, width]``; another M than
                ``num_context`` is as good where prompts fit.
        """
        sets, count = len(contexts), len(self.names)
        own = contexts if contexts.ndim == 4 else contexts[:, None].expand(-1, count, -1, -1)
        places = [(number, start) for number in range(sets) for start in range(0, count, PART)]
        if sets * count <= PART:
            found = self._part(own, self.names, self.ends)
        elif torch.is_grad_enabled() and contexts.requires_grad:
            parts = [checkpoint(self._part, *self._rows(own, n, start), use_reentrant=False) for n, start in places]
            found = torch.cat(parts)
        else:
            found = torch.cat([self._part(*self._rows(own, n, start)) for n, start in places])
        return found.reshape(sets, count, -1)

    def _rows(self, contexts: Tensor, number: int, start: int) -> tuple[Tensor, Tensor, Tensor]:
        some = slice(start, start + PART)
        return contexts[number : number + 1, some], self.names[some], self.ends[some]

    def _part(self, contexts: Tensor, names: Tensor, ends: Tensor) -> Tensor:
        """``[sets * labels, features]`` of contexts ``[sets, labels, M, width]``."""
        sets, count, length = contexts.shape[:3]
        shape = (sets, count, -1, -1)
        prompts = [self.first.expand(shape), contexts, names.expand(shape)]
        # Of a name's row the end token is the last: ends counts both, and start and context come before.
        result: Tensor = self.text_half(torch.cat(prompts, dim=2).flatten(0, 1), (ends + length).repeat(sets))
        return result

    def begin(self, start: str) -> Tensor:
        """A context to begin training from, float32 ``[M, width]``.

        Args:
            start: ``normal``: normal with a deviation of 0.02, from torch's global generator; ``template``: the
                words of the template's beginning.

        Raises:
            InputError: ``template``, whose beginning has another number of words than M.
        """
        if start == "normal":
            return torch.randn(self.num_context, self.first.shape[1]) * 0.02
        if len(self.template_context) != self.num_context:
            msg = (
                f"Expected context_length to be {len(self.template_context)}, the tokens of the template's beginning, "
                f"with start='template', got {self.num_context}. Change one of the two, or use start='normal'."
            )
            raise InputError(msg)
        return self.template_context.clone()


def _check_lengths(names: Sequence[str], rows: Sequence[Sequence[int]], context: int, limit: int) -> None:
    long = [name for name, row in zip(names, rows, strict=True) if 1 + context + len(row) > limit]
    if long:
        msg = (
            f"Expected prompts of at most {limit} tokens with {context} of context, got {len(long)} longer ones, first "
            f"that of {long[0]!r}. Shorten the names, the template or the context."
        )
        raise InputError(msg)


def open_reader(weights: str, model: str, *, features: int, seed: int, who: str) -> Reader:
    """The text half that a method's ``weights`` names.

    Args:
        weights: a folder in Hugging Face's format, a file of open_clip's, or ``random``: a tiny one that knows
            nothing, for tests.
        model: open_clip's name of the file's architecture.
        features: width of the space that images share, for ``random``.
        seed: likewise, of its numbers.
        who: the method, for messages.

    Raises:
        InputError: nothing is given, nothing is there, or it is no text half of CLIP.
    """
    if not weights:
        msg = (
            f"Expected weights of {who} to name the text half of a CLIP model, got nothing. Copy the folder "
            "openai/clip-vit-base-patch16 of Hugging Face (config.json and model.safetensors; model clip_image reads "
            "the same) to every host and give its path, or a file of open_clip's. weights='random' is a tiny text "
            "half that knows nothing, for tests."
        )
        raise InputError(msg)
    if weights == "random":
        return random_reader(features, seed)
    path = Path(weights).expanduser()
    if path.is_dir():
        return folder_reader(weights)
    if not path.exists() and path.suffix not in WEIGHT_SUFFIXES:
        msg = (
            f"Expected weights of {who} to be a folder with config.json and model.safetensors, or a file ending in "
            f"{', '.join(WEIGHT_SUFFIXES)}, got nothing at {weights!r}. Copy the folder openai/clip-vit-base-patch16 "
            "of Hugging Face there, or correct the path."
        )
        raise InputError(msg)
    return open_clip_reader(weights, model)


def random_reader(features: int, seed: int) -> Reader:
    """A text half of 2 blocks with random weights that reads bytes: for tests, since it knows nothing.

    Args:
        features: width of its features.
        seed: of its numbers.
    """
    shape = Shape(32, 2, 2, 64, patch=1, grid=1, eps=1e-5, activation="quick_gelu")
    with torch_global_stream(seed, "text/prompts"):
        half = TextHalf(shape, 77, features)
        half.positions.normal_(std=0.1)
        half.projection.normal_(std=1 / math.sqrt(shape.width))
        table = torch.randn(258, shape.width)
    return Reader(half.eval(), table, lambda text: list(text.encode()), 256, 257, "random")


def open_clip_reader(weights: str, model: str) -> Reader:
    """The text half of a file of open_clip's.

    Raises:
        InputError: open_clip is missing, or the file is none of that model, or its text half is no plain
            transformer.
    """
    tower = Tower(model, weights, "")
    given = tower.half()
    heads, quick, eps = int(given.pop("heads")), bool(given.pop("quick_gelu")), float(given.pop("eps"))
    activation = "quick_gelu" if quick else "gelu"
    reader = _reader(renamed(given, OPEN_CLIP), heads, activation, eps, tower.tokens, tower.source)
    expected = tower.encode([TRIAL], scaled=False)
    with torch.no_grad():
        found = PromptLearner(reader, [TRIAL.removeprefix("a photo of a ")], "a photo of a {}", 4)
        own = found(found.template_context[None])[0].double().numpy()
    if own.shape != expected.shape or np.abs(own - expected).max() > CLOSE * np.abs(expected).max():
        msg = (
            f"Expected the text half of {model} to be CLIP's plain transformer, got one that computes something else. "
            "Use the weights of a plain CLIP, such as ViT-B-16."
        )
        raise InputError(msg)
    return reader


def folder_reader(path: str) -> Reader:
    """The text half of a folder in Hugging Face's format; the words are split by open_clip's tokenizer.

    Raises:
        InputError: something is missing, unreadable, or of another model; open_clip is missing.
    """
    folder = Path(path).expanduser()
    config = folder_json(folder, "config.json")
    if config.get("model_type") != "clip":
        msg = (
            f"Expected {folder} to hold a clip model with its text half, got model_type {config.get('model_type')!r}. "
            "Use a folder of CLIPModel."
        )
        raise InputError(msg)
    given = {**DEFAULTS, **(config.get("text_config") or {})}
    heads, activation, eps = (given[name] for name in DEFAULTS)
    if activation not in ACTIVATIONS or type(heads) is not int or heads < 1 or not isinstance(eps, float | int):
        msg = (
            f"Expected {folder / 'config.json'} to describe a text half that is known here, got hidden_act "
            f"{activation!r}, num_attention_heads {heads!r}, layer_norm_eps {eps!r}. Copy the folder again."
        )
        raise InputError(msg)
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_weights(str(file)))
    own = {n: t.float() for n, t in tensors.items() if n.startswith(("text_model.", "text_projection."))}
    own.pop("text_model.embeddings.position_ids", None)
    found = _joined(renamed(own, HUGGING_FACE))
    if "projection" in found:
        found["projection"] = found["projection"].T.contiguous()
    source = source_of(folder.name, files, [folder / "config.json"])
    return _reader(found, heads, activation, float(eps), _splitter(), source)


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one."""
    for name in [name for name in tensors if ".attn.q." in name]:
        parts = [tensors.pop(name.replace(".attn.q.", f".attn.{part}."), None) for part in "qkv"]
        tensors[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([part for part in parts if part is not None])
    return tensors


def _splitter() -> Callable[[str], list[int]]:
    try:
        import open_clip  # optional, and slow to import
    except ImportError as error:
        msg = f"Expected open_clip to be installed for CLIP's tokenizer, got none. Run: {installing('clip')}."
        raise InputError(msg) from error
    tokenizer = open_clip.SimpleTokenizer()
    return lambda text: list(tokenizer.encode(text))


def _reader(
    tensors: dict[str, Tensor],
    heads: int,
    activation: str,
    eps: float,
    tokens: Callable[[str], list[int]],
    source: str,
) -> Reader:
    """A text half from tensors by the names here, whose shapes say how large it is."""
    tensors = {name: tensor.float() for name, tensor in tensors.items() if name not in {"logit_scale", "logit_bias"}}
    table, positions, projection = (tensors.get(name) for name in ("table", "positions", "projection"))
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    first = tensors.get("blocks.0.mlp.fc1.weight")
    if table is None or positions is None or projection is None or first is None or projection.ndim != 2:
        msg = (
            f"Expected {source} to hold the text half of a CLIP model, got no words, positions, blocks or projection "
            "of it. Copy the weights of the whole model."
        )
        raise InputError(msg)
    width = int(table.shape[1])
    if len(table) != WORDS or width % heads:
        msg = (
            f"Expected {source} to use CLIP's own {WORDS} words and a width that its {heads} heads divide, got "
            f"{len(table)} words of width {width}. Use the weights of a plain CLIP, such as ViT-B-16."
        )
        raise InputError(msg)
    shape = Shape(width, depth, heads, len(first), patch=1, grid=1, eps=eps, activation=activation)
    half = TextHalf(shape, len(positions), projection.shape[1])
    load_weights(half, {n: t for n, t in tensors.items() if n != "table"}, ("\0",), source)
    return Reader(half.eval(), table, tokens, WORDS - 2, WORDS - 1, source)


WORDS = 49408
"""Rows of CLIP's table; the last two are the start and the end of a text."""

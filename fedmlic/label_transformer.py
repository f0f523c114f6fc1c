"""The network of C-Tran and FedLGT: image tokens and label tokens in one transformer encoder.

Reading order, for one image with a feature map of ``height x width`` cells::

    backbone -> height * width image tokens ----------------+
                                                            +-> LayerNorm -> encoder layers
    label c: its vector + the vector of its state s_c ------+        |
                                                                     v
                  logit of c  =  readout.weight[c] . h_c + readout.bias[c]

With a shared read-out, all labels have one weight vector and bias; then only its vector
tells a label from the others, so that labels that nobody annotated, or that are added after
training, can be predicted from their names.

A label's state is what the network is given of it: nothing (unknown), absent
or present. States are int8 in the codes of ``fedmlic.labels``; which labels to
tell is decided in ``fedmlic.label_masking`` and ``fedmlic.methods.fedlgt``.

Sources: Lanchantin et al. 2021, "General Multi-label Image Classification with
Transformers" (CVPR); Liu et al. 2024, "Language-Guided Transformer for
Federated Multi-Label Classification" (AAAI, arXiv 2312.07165);
``docs/methods/fedlgt.md`` has the formulas. "Unknown" is the zero vector as in
both papers; C-Tran's code has a fixed random vector there. Where the papers are silent this follows FedLGT's
released code: no positional encoding, post-norm layers, a feed-forward part as
wide as the tokens, uniform initial weights of plus or minus 1 / sqrt(inputs).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.labels import UNKNOWN
from fedmlic.text import LabelVectors, alike, further_vectors, label_vectors, state_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fedmlic.method import Task
    from fedmlic.model import Backbone

Positions = Literal["none", "sine"]
ReadoutKind = Literal["row", "shared"]

LARGEST_DRIFT = 1e-4
"""Difference of an entry between label vectors that count as the same on two machines."""


class ReadsByName(Protocol):
    """A network that ``ask`` can predict further labels with.

    Attributes:
        readout_kind: a read-out row per label, or one for all.
        label_tokens: ``[labels, width]``, the labels' vectors as ``fedmlic.text`` made them.
    """

    readout_kind: ReadoutKind
    label_tokens: Tensor

    def label_rows(self) -> tuple[str, ...]:
        """Names of the trainable tensors with one row per label."""

    def beside(self, images: Tensor, vectors: Tensor) -> Tensor:
        """Logits float32 ``[batch, names]`` of further labels that nothing else depends on."""


class LabelTransformer(nn.Module):
    """A backbone and an encoder that returns one logit per label.

    Args:
        backbone: makes the feature map.
        labels: ``[labels, width]``, one vector per label, to be trained or frozen.
        states: ``[3, width]``, rows unknown (zeros), negative, positive, to be trained
            (unknown stays zero) or frozen.
        num_layers: encoder layers.
        num_heads: attention heads; must divide the width.
        feedforward: hidden units of an encoder layer (None: the width).
        dropout: probability, in attention weights and after each part of a layer.
        positions: positional encoding of image tokens: none, or 2-D sines.
        readout: a weight vector and bias per label (``row``), or one for all (``shared``).

    Raises:
        InputError: ``num_heads`` does not divide the width, or the sines do not fit it.
    """

    label_tokens: Tensor
    state_tokens: Tensor

    def __init__(
        self,
        backbone: Backbone,
        labels: LabelVectors,
        states: LabelVectors,
        *,
        num_layers: int = 3,
        num_heads: int = 4,
        feedforward: int | None = None,
        dropout: float = 0.1,
        positions: Positions = "none",
        readout: ReadoutKind = "row",
    ) -> None:
        super().__init__()
        num_labels, width = labels.vectors.shape
        _check_width(width, num_heads, positions)
        self.backbone = backbone
        self.positions = positions
        num_features = backbone.num_features
        self.projection = nn.Linear(num_features, width) if num_features != width else nn.Identity()
        hold(self, "label_tokens", labels.vectors, learned=labels.trainable)
        # Row 0 (unknown) is zero by definition and is not kept, so that nothing can train it.
        hold(self, "state_tokens", states.vectors[1:], learned=states.trainable)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, feedforward or width, dropout) for _ in range(num_layers)
        )
        self.readout_kind: ReadoutKind = readout
        self.readout = Readout(num_labels if readout == "row" else 1, width)
        if isinstance(self.projection, nn.Linear):
            uniform_by_inputs(self.projection)

    def forward(self, images: Tensor, states: Tensor | None = None) -> Tensor:
        """Logits float32 ``[batch, labels]``.

        Args:
            images: float32 ``[batch, channels, height, width]``.
            states: int8 ``[batch, labels]``, what the network is given (UNCERTAIN tells
                nothing); None tells nothing, as in prediction.
        """
        image_tokens = self.image_tokens(images)
        tokens = self.norm(torch.cat([image_tokens, self.told_labels(states, len(images))], dim=1))
        num_labels = len(self.label_tokens)
        for index, layer in enumerate(self.layers):
            # Nobody reads the image tokens after the last layer.
            tokens = layer(tokens, num_labels if index == len(self.layers) - 1 else None)
        logits: Tensor = self.readout(tokens[:, -num_labels:])
        return logits

    def beside(self, images: Tensor, vectors: Tensor) -> Tensor:
        """Logits float32 ``[batch, names]`` of further labels, with all states unknown.

        The tokens of further labels look at the image, at the labels and each at itself; nothing
        looks at them. So the labels' own logits stay what they are, and a name's logit depends
        neither on which other names are asked for nor on their number.

        Args:
            images: float32 ``[batch, channels, height, width]``.
            vectors: float32 ``[names, width]``, made like those of the labels.

        Raises:
            InputError: as ``set_labels``.
        """
        self._check_further(LabelVectors(vectors.cpu().numpy(), trainable=False, source=""))
        tokens = self.norm(torch.cat([self.image_tokens(images), self.told_labels(None, len(images))], dim=1))
        own = self.norm(vectors.expand(len(images), -1, -1))
        for layer in cast("list[EncoderLayer]", list(self.layers)):
            own, tokens = layer.beside(tokens, own), layer(tokens)
        logits: Tensor = self.readout(own)
        return logits

    def image_tokens(self, images: Tensor) -> Tensor:
        """``[batch, cells, width]``: the cells of the feature map, row by row."""
        features = self.backbone(images)
        tokens: Tensor = self.projection(features.flatten(2).transpose(1, 2))
        if self.positions == "sine":
            tokens = tokens + sine_positions(features.shape[2], features.shape[3], tokens.shape[2]).to(tokens)
        return tokens

    def told_labels(self, states: Tensor | None, batch: int) -> Tensor:
        """``[batch, labels, width]``: each label's vector plus the vector of its state."""
        tokens = self.label_tokens.expand(batch, -1, -1)
        if states is None:
            return tokens
        table = F.pad(self.state_tokens, (0, 0, 1, 0))
        return tokens + F.embedding(states.clamp(min=UNKNOWN).to(torch.int64) - UNKNOWN, table)

    def label_rows(self) -> tuple[str, ...]:
        """Names of the trainable tensors with one row per label."""
        tokens = ("label_tokens",) if isinstance(self.label_tokens, nn.Parameter) else ()
        return (*tokens, "readout.weight", "readout.bias") if self.readout_kind == "row" else tokens

    def set_labels(self, labels: LabelVectors) -> None:
        """Predict other labels from now on, in the order of these vectors.

        The vectors must be made like those that the network was trained with: by the same kind
        and seed, and without a change of width that depends on the set of labels
        (``docs/label_vectors.md``).

        Args:
            labels: ``[any number, width]``, frozen.

        Raises:
            InputError: labels have parameters of their own, or the width is another.
        """
        self._check_further(labels)
        self.label_tokens = torch.tensor(labels.vectors).to(self.label_tokens)

    def _check_further(self, labels: LabelVectors) -> None:
        if self.label_rows() or labels.trainable:
            own = [*self.label_rows(), *(["the new vectors"] if labels.trainable else [])]
            msg = (
                f"Expected a network without trained parameters per label, got {', '.join(own)}. "
                "Train with readout='shared' and frozen label vectors."
            )
            raise InputError(msg)
        width = self.label_tokens.shape[1]
        if labels.vectors.ndim != 2 or labels.vectors.shape[1] != width or not len(labels.vectors):
            msg = f"Expected label vectors [labels, {width}], got {list(labels.vectors.shape)}. Ask for this width."
            raise InputError(msg)


class EncoderLayer(nn.Module):
    """Self-attention, then two linear maps with ReLU, each added to its input and normalised.

    The same function as ``torch.nn.TransformerEncoderLayer`` with post-norm; written out so
    that the last layer can answer for the label tokens only, and because it is faster at
    the small widths used on small images.

    Args:
        width: of the tokens.
        num_heads: attention heads.
        feedforward: hidden units.
        dropout: probability.
    """

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_attended = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm_contracted = nn.LayerNorm(width)
        self.dropout = dropout
        # As in the release, whose generic initialiser passes over torch's joint projection.
        nn.init.xavier_uniform_(self.queries_keys_values.weight)
        nn.init.zeros_(self.queries_keys_values.bias)
        for linear in (self.attended, self.expand, self.contract):
            uniform_by_inputs(linear)

    def forward(self, tokens: Tensor, num_last: int | None = None, places: Tensor | None = None) -> Tensor:
        """New tokens ``[batch, tokens, width]``, or only the last ``num_last`` of them.

        Args:
            tokens: ``[batch, tokens, width]``.
            num_last: how many are asked for.
            places: ``[tokens, width]``, added to tokens where they ask and are looked up, not where they are gathered.
        """
        own = tokens if num_last is None else tokens[:, -num_last:]
        own = self.norm_attended(own + self.drop(self.attention(tokens, own, places)))
        hidden = self.drop(F.relu(self.expand(own)))
        result: Tensor = self.norm_contracted(own + self.drop(self.contract(hidden)))
        return result

    def beside(self, tokens: Tensor, own: Tensor) -> Tensor:
        """New ``own`` ``[batch, further, width]``: each gathers from all ``tokens`` and from itself alone."""
        queries, keys, values, own_keys, own_values = (
            part.view(*part.shape[:2], self.num_heads, -1).transpose(1, 2)
            for part in (*self.projected(tokens, own), *self.projected(own, own)[1:])
        )
        alone = (queries * own_keys).sum(dim=3, keepdim=True)
        scores = torch.cat([queries @ keys.transpose(2, 3), alone], dim=3) * queries.shape[3] ** -0.5
        weights = scores.softmax(dim=3)
        gathered = weights[..., :-1] @ values + weights[..., -1:] * own_values
        own = self.norm_attended(own + self.attended(gathered.transpose(1, 2).flatten(2)))
        result: Tensor = self.norm_contracted(own + self.contract(F.relu(self.expand(own))))
        return result

    def attention(self, tokens: Tensor, own: Tensor, places: Tensor | None = None) -> Tensor:
        """What ``own`` (the last of ``tokens``) gather from all ``tokens``; same shape as ``own``."""
        queries, keys, values = (
            part.view(*part.shape[:2], self.num_heads, -1).transpose(1, 2)
            for part in self.projected(tokens, own, places)
        )
        if self.training and self.dropout > 0 and tokens.device.type == "cpu":
            scores = (queries * queries.shape[3] ** -0.5) @ keys.transpose(2, 3)
            gathered = self.drop(scores.softmax(dim=3)) @ values
        else:
            chance = self.dropout if self.training else 0.0
            gathered = F.scaled_dot_product_attention(queries, keys, values, dropout_p=chance)
        result: Tensor = self.attended(gathered.transpose(1, 2).flatten(2))
        return result

    def projected(self, tokens: Tensor, own: Tensor, places: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries of ``own``, keys and values of ``tokens``, each ``[batch, tokens, width]``."""
        joint = self.queries_keys_values
        width = tokens.shape[2]
        if places is not None:
            placed = tokens + places
            given = (placed[:, -own.shape[1] :], placed, tokens)
            parts = zip(given, joint.weight.tensor_split(3), joint.bias.tensor_split(3), strict=True)
            return tuple(F.linear(*each) for each in parts)
        if own is tokens:
            return joint(tokens).tensor_split(3, dim=2)  # type: ignore[no-any-return]
        queries = F.linear(own, joint.weight[:width], joint.bias[:width])
        others = F.linear(tokens, joint.weight[width:], joint.bias[width:])
        return queries, others[..., :width], others[..., width:]

    def drop(self, values: Tensor) -> Tensor:
        """``values`` with dropout in training mode."""
        return dropout(values, self.dropout) if self.training else values


def dropout(values: Tensor, probability: float) -> Tensor:
    """Each value zero with ``probability``, else divided by 1 minus it; draws from torch's global generator.

    On the CPU the probability is rounded to a multiple of 2**-16, and four decisions are
    made per 64-bit draw: torch's own takes one slow draw for each, which for attention
    weights is half the time of a training step.
    """
    if probability == 0 or values.device.type != "cpu":
        return F.dropout(values, probability)
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = min(round(probability * 2**16), 2**16 - 1)
    kept = draws.view(torch.int16)[: values.numel()].view(values.shape) >= dropped - 2**15
    return values * kept.to(values.dtype).mul_(2**16 / (2**16 - dropped))


class Readout(nn.Module):
    """One linear unit per label, each reading its own token: the diagonal of a linear map.

    A single unit reads any number of tokens.

    Args:
        num_labels: labels, or 1 for a unit that all share.
        width: of the tokens.
    """

    def __init__(self, num_labels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, width))
        self.bias = nn.Parameter(torch.empty(num_labels))
        uniform_by_inputs(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of tokens ``[batch, labels, width]``."""
        return (tokens * self.weight).sum(dim=2) + self.bias


def build_label_transformer(
    task: Task,
    *,
    text: str,
    layers: int,
    heads: int,
    width: int | None,
    feedforward: int | None,
    dropout: float,
    positions: Positions,
    readout: ReadoutKind,
    swap_states: bool = False,
) -> LabelTransformer:
    """The network for a task, its label and state vectors made by ``fedmlic.text``.

    Args:
        task: what is to be learned.
        text: where the vectors come from, such as ``"learned()"``.
        layers: encoder layers.
        heads: attention heads.
        width: of the tokens (None: the backbone's number of features, no projection).
        feedforward: hidden units of an encoder layer (None: the width).
        dropout: probability.
        positions: of image tokens.
        readout: per label, or shared by all.
        swap_states: give absent labels the positive vector and present ones the negative.

    Raises:
        InputError: arguments do not fit, or a shared read-out could not tell two labels apart.
    """
    backbone = task.model.build(task.image_shape[2])
    width = width or backbone.num_features
    labels = label_vectors(text, task.label_names, width, task.seed)
    if readout == "shared":
        check_distinct(task.label_names, labels.vectors)
    states = state_vectors(text, width, task.seed)
    if swap_states:
        states = states._replace(vectors=states.vectors[[0, 2, 1]])
    return LabelTransformer(
        backbone,
        labels,
        states,
        num_layers=layers,
        num_heads=heads,
        feedforward=feedforward,
        dropout=dropout,
        positions=positions,
        readout=readout,
    )


def ask(network: nn.Module, task: Task, names: Sequence[str], text: str) -> Callable[[Tensor], Tensor]:
    """Predict labels by their names, those that the network was trained with and others.

    A name whose vector is that of a label of the training has that label's probability to the bit.

    Args:
        network: a trained ``LabelTransformer``, or another network that ``ReadsByName``.
        task: what it was built for.
        names: unique.
        text: where its vectors came from.

    Returns:
        ``images -> probabilities``, float32 ``[batch, names]``.

    Raises:
        InputError: labels have a read-out or vectors of their own, a name without a vector, or
            vectors here that are not those of the training.
    """
    trained = cast("ReadsByName", network)
    if trained.readout_kind == "row":
        msg = (
            "Expected a network that reads all labels out alike to ask it about other names, got a read-out row for "
            "each label: a name that was not among the labels has none. Train with readout='shared'."
        )
        raise InputError(msg)
    if trained.label_rows():
        msg = (
            "Expected label vectors made from names to ask about other names, got learned ones: a name that was not "
            "among the labels has none. Train with text='minilm()', 'glove()' or 'clip(...)' and readout='shared'."
        )
        raise InputError(msg)
    tokens = trained.label_tokens
    vectors, own = further_vectors(text, names, task.label_names, tokens.shape[1], task.seed)
    if not np.allclose(own, tokens.cpu().numpy(), rtol=0, atol=LARGEST_DRIFT):
        msg = (
            f"Expected {text} to give the label vectors that the network was trained with, got others. Use the same "
            "weights and files as for the training."
        )
        raise InputError(msg)
    place = {tuple(row): number for number, row in enumerate(own.tolist())}
    further = [number for number, row in enumerate(vectors.tolist()) if tuple(row) not in place]
    beside = {number: len(own) + count for count, number in enumerate(further)}
    columns = [beside.get(number, place.get(tuple(row), -1)) for number, row in enumerate(vectors.tolist())]
    asked = torch.from_numpy(vectors[further]).to(tokens)

    def probabilities(images: Tensor) -> Tensor:
        # Of the labels exactly as ``predict`` does it: a sigmoid's last bit depends on the place in a vector register.
        found = predict(network, images)
        if further:
            found = torch.cat([found, torch.sigmoid(trained.beside(images, asked))], dim=1)
        return found[:, columns]

    return probabilities


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``, telling the network nothing."""
    return torch.sigmoid(network(images))


def label_rows(network: nn.Module) -> tuple[str, ...]:
    """Names of the trainable tensors with one row per label."""
    assert isinstance(network, LabelTransformer)  # noqa: S101  (our own build made it)
    return network.label_rows()


def sine_positions(height: int, width: int, num_features: int) -> Tensor:
    """float32 ``[height * width, num_features]``: where each cell is, as sines and cosines.

    The first half of the features tells the row, the second half the column: for
    ``frequency_i = 10000 ** (-i / (num_features / 4))`` the sines of ``place *
    frequency_i``, then the cosines. Any grid fits; rows and columns count 0, 1, ...

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, once per axis.
    """
    quarter = num_features // 4
    frequencies = torch.exp(torch.arange(quarter) * (-math.log(10000.0) / quarter))

    def waves(places: int) -> Tensor:
        angles = torch.arange(places)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = waves(height)[:, None].expand(height, width, -1)
    columns = waves(width)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def uniform_by_inputs(module: nn.Linear | Readout) -> None:
    """Draw weights and biases uniformly from plus or minus 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(module.weight.shape[1])
    nn.init.uniform_(module.weight, -bound, bound)
    nn.init.uniform_(module.bias, -bound, bound)


def hold(module: nn.Module, name: str, vectors: NDArray[np.float32], *, learned: bool) -> None:
    """Make ``vectors`` a parameter of ``module``, or a constant of it."""
    values = torch.tensor(vectors)
    if learned:
        module.register_parameter(name, nn.Parameter(values))
    else:
        module.register_buffer(name, values)


def check_distinct(names: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Raise ``InputError`` if two labels have equal vectors, which a shared read-out could not tell apart."""
    equal = alike(names, vectors)
    if equal:
        msg = (
            f"Expected label vectors to differ with readout='shared', got equal ones for {', '.join(equal)}. "
            "Rename or join these labels, or use readout='row'."
        )
        raise InputError(msg)


def _check_width(width: int, num_heads: int, positions: Positions) -> None:
    if width % num_heads:
        msg = f"Expected heads to divide the width {width}, got {num_heads}. Choose another width or number of heads."
        raise InputError(msg)
    if positions == "sine" and width % 4:
        msg = f"Expected the width to be a multiple of 4 for positions='sine', got {width}. Choose another width."
        raise InputError(msg)

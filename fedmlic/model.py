"""From images to a map of features: the backbone, and the plainest classifier on top of it.

Methods differ in what they put on the feature map; the backbone is the experiment's.
Its kinds are in ``models/``; each is a factory that returns a ``Model``.

BatchNorm needs a decision in federated learning, because its running statistics are
neither trained nor private. Every backbone states one of three policies:

* ``none``: there is no BatchNorm (GroupNorm stands in its place);
* ``frozen``: pretrained statistics are used and never change, the affine part trains;
* ``pooled``: running statistics are updated locally, exchanged, and merged by the server.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmlic.errors import InputError, nearest

BatchNormPolicy = Literal["none", "frozen", "pooled"]
POOLS = ("mean", "max", "logsumexp")


class Backbone(nn.Module, ABC):
    """The part of a network that every method shares.

    Attributes:
        num_features: channels of the feature map.
        bn_policy: what happens to BatchNorm statistics.
    """

    num_features: int
    bn_policy: BatchNormPolicy

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """The feature map float32 ``[batch, features, height', width']``.

        Args:
            images: float32 ``[batch, channels, height, width]`` as ``pixel_scale.to_float`` makes
                them, (byte - 127.5) / 63.75. A network that was pretrained on another scale
                converts by itself.
        """


class Tokens(NamedTuple):
    """What a transformer works on.

    Attributes:
        values: float32 ``[batch, prefix + height' * width', width]``: class and register tokens in
            front, then the places of the map, row by row.
        grid: height' and width'.
    """

    values: Tensor
    grid: tuple[int, int]


class TokenBackbone(Backbone):
    """A transformer whose inside methods may use: its tokens, and its blocks one by one.

    ``forward`` is ``embed``, all ``blocks``, ``finish``, and the places back on their grid. A method that
    adds tokens of its own (prompts) appends them to those of ``embed`` and does the rest likewise::

        values, grid = backbone.embed(images)
        values = torch.cat([values, prompts.expand(len(images), -1, -1)], dim=1)
        for block in backbone.blocks:
            values = block(values)
        values = backbone.finish(values)

    Attributes:
        width: of tokens inside; ``num_features`` is that of ``finish``.
        num_prefix_tokens: class and register tokens in front.
        blocks: each takes and gives ``[batch, tokens, width]``.
    """

    width: int
    num_prefix_tokens: int
    blocks: nn.ModuleList

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """The tokens before the first block, positions added."""

    @abstractmethod
    def finish(self, values: Tensor) -> Tensor:
        """``[batch, tokens, width]`` after the last block to ``[batch, tokens, num_features]``."""

    def tokens(self, images: Tensor) -> Tokens:
        """The finished tokens of images, class and register tokens included."""
        values, grid = self.embed(images)
        for block in self.blocks:
            values = block(values)
        return Tokens(self.finish(values), grid)

    def on_grid(self, tokens: Tokens) -> Tensor:
        """``[batch, features, height', width']``: the places, without what is in front of them and after them."""
        (height, width), first = tokens.grid, self.num_prefix_tokens
        places = tokens.values[:, first : first + height * width]
        return places.transpose(1, 2).reshape(len(places), -1, height, width)


class Stage(nn.Module):
    """Blocks that work at one resolution.

    Attributes:
        downsample: makes this stage's map of the one before it.
        blocks: each takes and gives ``[batch, num_features, height', width']``.
        num_features: channels.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], num_features: int) -> None:
        super().__init__()
        self.downsample, self.blocks, self.num_features = downsample, nn.ModuleList(blocks), num_features

    def forward(self, features: Tensor) -> Tensor:
        """The stage's map of the map before it."""
        features = self.downsample(features)
        for block in self.blocks:
            features = block(features)
        return features


class StageBackbone(Backbone):
    """A network in stages whose inside methods may use: the map of every stage, and its blocks one by one.

    ``forward`` is ``embed`` and all ``stages``.

    Attributes:
        stages: of ``Stage``, from the finest map to the coarsest.
    """

    stages: nn.ModuleList

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """The map before the first stage."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """The map after each stage, ``[batch, stage.num_features, height', width']``; the last is ``forward``'s."""
        features, maps = self.embed(images), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """The last stage's map."""
        return self.maps(images)[-1]


class TwoViews(Backbone):
    """Another backbone's map with a view of the whole image in front, for methods that need both.

    The view of the whole image is the class token where the tower gives its tokens and has one, else the
    mean over all places.

    Args:
        tower: the other backbone.
    """

    def __init__(self, tower: Backbone) -> None:
        super().__init__()
        self.tower, self.num_features, self.bn_policy = tower, tower.num_features, tower.bn_policy

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, features, 1 + height' * width', 1]``: the whole image, then the places, row by row."""
        tower = self.tower
        if isinstance(tower, TokenBackbone) and tower.num_prefix_tokens:
            (values, (height, width)), first = tower.tokens(images), tower.num_prefix_tokens
            whole, places = values[:, :1], values[:, first : first + height * width]
        else:
            features: Tensor = tower(images)
            places = features.flatten(2).transpose(1, 2)
            whole = places.mean(dim=1, keepdim=True)
        return torch.cat([whole, places], dim=1).transpose(1, 2)[..., None]


_Kind = TypeVar("_Kind", bound=Backbone)


def require(backbone: Backbone, kind: type[_Kind], who: str) -> _Kind:
    """``backbone``, if its inside is open in this way.

    Args:
        backbone: that of the experiment.
        kind: ``TokenBackbone`` or ``StageBackbone``.
        who: who needs it, for the message.

    Raises:
        InputError: it is another kind.
    """
    if isinstance(backbone, kind):
        return backbone
    known = {TokenBackbone: "vit, clip_image or siglip_image", StageBackbone: "convnext"}.get(kind, kind.__name__)
    what = {TokenBackbone: "tokens and blocks", StageBackbone: "stages"}.get(kind, kind.__name__)
    msg = f"Expected model to give {who} its {what}, got {type(backbone).__name__.strip('_')}. Choose {known}."
    raise InputError(msg)


class Model(NamedTuple):
    """A backbone's description.

    Attributes:
        build: a new backbone for images of so many channels. Initial weights that are not
            from a file come from torch's global generator; the caller sets it.
        source: where the initial weights come from, for the record: ``scratch``, or the name of a file or
            folder with ``sha256:`` and the start of the SHA-256 of all that was read from it, files of
            settings included.
        bn_policy: what the built backbones state.
    """

    build: Callable[[int], Backbone]
    source: str = "scratch"
    bn_policy: BatchNormPolicy = "none"

    @property
    def content(self) -> str:
        """``source`` without names, where it has digests: the same for equal files, wherever they lie.

        >>> Model(lambda channels: None, "vit.pth sha256:53aa51170d05").content
        'sha256:53aa51170d05'
        """
        return " ".join(re.findall(r"\bsha256:[0-9a-f]+", self.source, re.ASCII)) or self.source

    @property
    def pretrained(self) -> bool:
        """Whether training starts from somebody else's weights."""
        return self.source != "scratch"


class Classifier(nn.Module):
    """One logit per label: a linear unit at every place of the feature map, then a pool over places.

    ``hidden`` puts layers with ReLU between the feature map and the linear units, at every place
    alike (1 x 1 convolutions): trainable capacity on features that do not train.

    With z_1 ... z_P the logits of one label at the P places, the pool is

    * ``mean``: (z_1 + ... + z_P) / P;
    * ``max``: the largest;
    * ``logsumexp``: T * (log(exp(z_1 / T) + ... + exp(z_P / T)) - log P), between the two: it
      tends to the maximum as the temperature T goes to 0 and to the mean as T grows, and
      gives back a constant map's constant.

    Args:
        backbone: makes the feature map.
        num_labels: labels to predict.
        pool: ``mean``, ``max`` or ``logsumexp``.
        temperature: T above, larger than 0.
        hidden: units of each hidden layer, from the feature map on; empty for none.

    Source: the log-sum-exp pool is that of Pinheiro and Collobert 2015, "From Image-level to
    Pixel-level Labeling with Convolutional Networks" (CVPR), with r = 1 / T.
    """

    label_rows: ClassVar[tuple[str, str]] = ("head.weight", "head.bias")
    """Tensors with one row per label (first axis): ``[labels, features]`` and ``[labels]``."""

    def __init__(
        self,
        backbone: Backbone,
        num_labels: int,
        pool: str = "mean",
        temperature: float = 1.0,
        *,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            msg = f"Expected pool to be one of {', '.join(POOLS)}, got {pool!r}. {nearest(pool, POOLS)}"
            raise InputError(msg)
        if not (temperature > 0 and math.isfinite(temperature)):
            msg = f"Expected temperature to be a number above 0, got {temperature}. 1 is the usual choice."
            raise InputError(msg)
        self.backbone = backbone
        widths = (backbone.num_features, *hidden)
        self.hidden = nn.Sequential(*(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())))
        self.head = nn.Linear(widths[-1], num_labels)
        self.pool, self.temperature = pool, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]`` of images ``[batch, channels, height, width]``."""
        features: Tensor = self.backbone(images)
        if self.pool == "mean":
            # The head is linear, so the order of mean and head does not matter; this one is cheaper.
            mean = (
                self.hidden(features.flatten(2).transpose(1, 2)).mean(dim=1) if self.hidden else features.mean((2, 3))
            )
            logits: Tensor = self.head(mean)
            return logits.float()
        places: Tensor = self.head(self.hidden(features.flatten(2).transpose(1, 2))).float()
        if self.pool == "max":
            return places.amax(dim=1)
        return self.temperature * ((places / self.temperature).logsumexp(dim=1) - math.log(places.shape[1]))


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of equal groups that is at most ``num_groups``.

    Source: Wu and He 2018, "Group Normalization" (ECCV).

    >>> group_norm(48, 32).num_groups
    24
    """
    return nn.GroupNorm(_num_groups(channels, num_groups), channels)


def _num_groups(channels: int, limit: int) -> int:
    return max(g for g in range(1, min(limit, channels) + 1) if channels % g == 0)


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm whose statistics are constants; its weight and bias train.

    It computes what ``nn.BatchNorm2d`` computes in evaluation mode, in either mode, so
    ``train()`` cannot thaw it. Tensor names are those of ``nn.BatchNorm2d`` without
    ``num_batches_tracked``. (torchvision's class of this name freezes weight and bias too.)

    Args:
        num_features: channels.
        eps: added to the variance.
        affine: whether there are a weight and a bias.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, *, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise ``[batch, features, height, width]``; other axes after the second are as good."""
        return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """``FrozenBatchNorm2d`` followed by ``drop`` and ``act``, as timm's ``BatchNormAct2d`` is BatchNorm with both."""

    drop: nn.Module
    act: nn.Module

    def forward(self, features: Tensor) -> Tensor:
        """Normalise ``[batch, features, height, width]``, drop, activate."""
        activated: Tensor = self.act(self.drop(super().forward(features)))
        return activated


class GroupNormAct(nn.GroupNorm):
    """GroupNorm followed by ``drop`` and ``act``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, features: Tensor) -> Tensor:
        """Normalise ``[batch, features, height, width]``, drop, activate."""
        activated: Tensor = self.act(self.drop(super().forward(features)))
        return activated


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_WITH_ACTIVATION = ("BatchNormAct2d", "SyncBatchNormAct")
"""timm's classes, which end with ``drop`` and ``act``; timm need not be installed."""


def apply_bn_policy(network: nn.Module, policy: BatchNormPolicy, num_groups: int = 32) -> None:
    """Replace every BatchNorm layer below ``network`` in place, as ``policy`` says.

    ``pooled`` leaves them; ``frozen`` takes over statistics, eps, weight and bias; ``none`` puts
    GroupNorm there, which takes over weight and bias only. Both keep the drop and activation
    layers of timm's ``BatchNormAct2d`` and which tensors train. Tensor names stay. A layer that
    is used in two places stays one layer.

    Args:
        network: changed in place.
        policy: see the module's docstring.
        num_groups: upper limit of groups, for ``none``.

    Raises:
        InputError: a layer computes something else than torch's or timm's BatchNorm, or has no
            statistics to freeze; nothing is changed then.
    """
    if policy == "pooled":
        return
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent._modules.items()  # noqa: SLF001  (named_children leaves out a layer's second place)
        if isinstance(child, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
    ]
    paths = {id(module): path for path, module in network.named_modules()}
    for _, _, child in places:
        _check_replaceable(child, paths[id(child)], policy)
    replaced: dict[int, nn.Module] = {}
    for parent, name, child in places:
        if id(child) not in replaced:
            replaced[id(child)] = _frozen(child) if policy == "frozen" else _grouped(child, num_groups)
        setattr(parent, name, replaced[id(child)])


def _check_replaceable(layer: nn.modules.batchnorm._BatchNorm, path: str, policy: BatchNormPolicy) -> None:
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    lazy = isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    # A subclass with a forward of its own may do anything after (or instead of) the normalisation.
    plain = any(type(layer).forward is known.forward for known in _PLAIN)
    if lazy or not (plain or _has_activation(layer)):
        msg = (
            f"Expected BatchNorm layers to be torch's, or timm's with an activation, got {kind} at {path!r}, of which "
            f"policy {policy!r} knows no equivalent. Replace that layer before, or use policy 'pooled'."
        )
        raise InputError(msg)
    if policy == "frozen" and layer.running_mean is None:
        msg = (
            f"Expected BatchNorm layers to have running statistics that can be frozen, got {kind} without any at "
            f"{path!r}. Use policy 'none'."
        )
        raise InputError(msg)


def _has_activation(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind.__name__ in _WITH_ACTIVATION and kind.__module__.split(".")[0] == "timm"


def _frozen(layer: nn.modules.batchnorm._BatchNorm) -> FrozenBatchNorm2d:
    kind = FrozenBatchNormAct2d if _has_activation(layer) else FrozenBatchNorm2d
    return _take_over(layer, kind(layer.num_features, layer.eps, affine=layer.affine))


def _grouped(layer: nn.modules.batchnorm._BatchNorm, num_groups: int) -> nn.GroupNorm:
    kind = GroupNormAct if _has_activation(layer) else nn.GroupNorm
    groups = _num_groups(layer.num_features, num_groups)
    return _take_over(layer, kind(groups, layer.num_features, affine=layer.affine))


_Norm = TypeVar("_Norm", bound=nn.Module)


def _take_over(layer: nn.modules.batchnorm._BatchNorm, new: _Norm) -> _Norm:
    """``new`` with those tensors and layers of ``layer`` that it has room for."""
    if _has_activation(layer):
        for part in ("drop", "act"):
            new.add_module(part, getattr(layer, part, None) or nn.Identity())
    tensors = layer.state_dict()
    new.load_state_dict({name: tensors[name] for name in new.state_dict()})
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(layer.get_parameter(name).requires_grad)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            new.to(device=tensor.device, dtype=tensor.dtype)
            break
    return new.train(layer.training)

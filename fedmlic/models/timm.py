"""Any image network of the library timm as a feature map: ConvNeXt, ViT, Swin, EfficientNet, ResNet and many more.

The feature map is what the network makes before its pool; tokens of a transformer are put back on
their grid, without class and register tokens. Layers that the map does not need (classifier,
norms behind the pool, mask tokens) are removed, so every parameter has a use. Weights are a file
on this machine; nothing is ever fetched.

Source: Wightman, "PyTorch Image Models" (github.com/huggingface/pytorch-image-models, Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.errors import InputError, installing, nearest
from fedmlic.model import Backbone, BatchNormPolicy, Model, apply_bn_policy
from fedmlic.pretrained import (
    NO_WEIGHTS,
    Norm,
    PixelScale,
    bn_policy_of,
    check_channels,
    check_trainable,
    check_weights_file,
    freeze,
    load_weights,
    num_parts_trained,
    read_weights,
    train_parts,
)

IMPORTS = ("timm",)
"""What the factory imports late; worker processes import it before they are forked."""

ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""Options of timm's transformers that let images have another size than the network was built for."""

FAILURES = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""How timm's networks refuse an option or a size, and how one fails that lacks a layer."""

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001  (torch's name for all of them)


class _Facts(NamedTuple):
    """What is known of a network before it is built.

    Attributes:
        options: what timm's ``create_model`` gets.
        side: to which images are resized; 0: not at all.
        num_features: channels of the feature map.
        normed: whether the network's last norm is part of an intermediate map.
        unused: names of parameters that the map does not need.
        removable: whether the network runs without them; otherwise they stay and do not train.
        parts: names of the parameters of every part, from the image to the map.
        batch_norms: names of the BatchNorm layers.
        mean: of images in [0, 1] per channel, as the network's weights expect it.
        std: likewise.
        classifier: prefixes of names that weights may have and the network does not need.
    """

    options: Mapping[str, Any]
    side: int
    num_features: int
    normed: bool
    unused: tuple[str, ...]
    removable: bool
    parts: tuple[tuple[str, ...], ...]
    batch_norms: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classifier: tuple[str, ...]


class _Timm(Backbone):
    """A timm network with the scale and the size of images that it expects.

    Args:
        network: timm's.
        out_index: which intermediate map; None: the last features.
        facts: what is known of it.
        pixels: takes images to the network's scale.
    """

    def __init__(self, network: nn.Module, out_index: int | None, facts: _Facts, pixels: nn.Module) -> None:
        super().__init__()
        self.network, self.out_index = network, out_index
        self.side, self.normed, self.num_features = facts.side, facts.normed, facts.num_features
        self.pixels = pixels
        size = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        self.patch = (size, size) if isinstance(size, int) else size

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pixels(images)
        if self.side and features.shape[2:] != (self.side, self.side):
            features = F.interpolate(features, (self.side, self.side), mode="bilinear", antialias=True)
        if self.patch is not None:
            below, right = (-side % patch for side, patch in zip(features.shape[2:], self.patch, strict=True))
            features = F.pad(features, (0, right, 0, below)) if below or right else features
        return _feature_map(self.network, features, self.out_index, normed=self.normed)


def _feature_map(network: nn.Module, images: Tensor, out_index: int | None, *, normed: bool) -> Tensor:
    intermediates = cast(Any, network).forward_intermediates
    if out_index is not None:
        chosen = intermediates(images, indices=[out_index], norm=normed, output_fmt="NCHW", intermediates_only=True)
        return cast(Tensor, chosen[0])
    last, maps = intermediates(images, indices=1, norm=normed, output_fmt="NCHW")
    if not isinstance(last, Tensor) or last.ndim != 4:
        return cast(Tensor, maps[-1])
    places = maps[-1].shape[2:]
    channels_at_the_end = last.shape[1:3] == places != last.shape[2:]
    if channels_at_the_end or str(getattr(network, "output_fmt", "")).endswith("NHWC"):
        return last.permute(0, 3, 1, 2)
    return last


def timm(
    *,
    name: str = "convnext_atto",
    weights: str = "none",
    out_index: int | None = None,
    image_size: Annotated[int, Field(ge=0)] = 0,
    norm: Norm = "auto",
    num_groups: Annotated[int, Field(ge=1)] = 32,
    trainable: str = "all",
) -> Model:
    """A network of the library timm without its classifier.

    Args:
        name: of timm's, with or without the tag of its weights (``convnext_atto.d2_in1k``),
            which decides the scale of pixels.
        weights: ``none``: from scratch; else a file with a state dict of timm's names
            (.safetensors, .pth, .pt, .bin).
        out_index: which of the network's intermediate maps (0: the first, -1: the last); None:
            the last features, which the classifier would average.
        image_size: pixels a side to which images are resized inside the network; 0: as they
            are, or the network's own size where it takes no other.
        norm: ``frozen``: BatchNorm with the statistics of the weights, for good; ``group``:
            GroupNorm in its place; ``pooled``: BatchNorm whose statistics are exchanged;
            ``auto``: ``frozen`` with weights, ``group`` from scratch. Other norms stay as they
            are, and a network without BatchNorm is not changed.
        num_groups: upper limit of groups of GroupNorm.
        trainable: ``all``, ``last(n)``, ``lora(rank)`` or ``head``: which parts of the backbone train. Parts
            are timm's coarse groups: the stem, then stages or blocks.

    Raises:
        InputError: timm is not installed; no such network, weights, map or ``trainable``;
            ``frozen`` without weights, whose statistics would be those of nothing.
    """
    pretrained = weights not in NO_WEIGHTS
    source = check_weights_file(weights) if pretrained else "scratch"
    num_parts_trained(trainable)
    facts = _facts(name, out_index, image_size)
    policy = bn_policy_of(f"timm {name}", norm, pretrained=pretrained) if facts.batch_norms else "none"
    check_trainable(f"timm {name}", trainable, len(facts.parts), policy, pretrained=pretrained)
    stated = _policy_of_parts(policy, facts, trainable)

    def build(channels: int) -> Backbone:
        inputs = check_channels(name, channels, pretrained=pretrained)
        network = _create(name, {**facts.options, "in_chans": inputs})
        known = {*network.state_dict(), *(buffer for buffer, _ in network.named_buffers())}
        index = _pruned(network, out_index)
        if facts.removable:
            _remove(network, facts.unused)
        if pretrained:
            _load(network, read_weights(weights), known, facts.classifier, source)
        apply_bn_policy(network, policy, num_groups)
        freeze(network, facts.unused)
        train_parts(network, facts.parts, trainable, f"timm {name}")
        scaled = pretrained or channels == len(facts.mean)
        pixels = PixelScale(facts.mean, facts.std) if scaled else nn.Identity()
        backbone = _Timm(network, index, facts, pixels)
        backbone.bn_policy = stated
        return backbone

    return Model(build, source, stated)


def _policy_of_parts(policy: BatchNormPolicy, facts: _Facts, trainable: str) -> BatchNormPolicy:
    """``frozen`` instead of ``pooled`` if no BatchNorm layer is in a part that trains."""
    count = num_parts_trained(trainable)
    if policy != "pooled" or count is None:
        return policy
    trained = {name for part in facts.parts[len(facts.parts) - count :] for name in part}
    return "pooled" if any(f"{name}.weight" in trained for name in facts.batch_norms) else "frozen"


def _load(
    network: nn.Module, tensors: Mapping[str, Tensor], known: set[str], classifier: tuple[str, ...], source: str
) -> None:
    """Load ``network``; what the whole network knows, but the map does not need, may be in the file or not."""
    needless = known - network.state_dict().keys()
    given = {name: tensor for name, tensor in tensors.items() if name not in needless}
    load_weights(network, given, classifier or ("\0",), source)


@lru_cache(maxsize=64)
def _facts(name: str, out_index: int | None, image_size: int) -> _Facts:
    """Build the network, without storage where it can be, and follow which parameters reach the map."""
    _check_name(name)
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _examined(name, out_index, image_size)
        except InputError:
            raise
        except FAILURES:  # some networks, in older versions of timm most, read numbers while they are built
            return _examined_in_memory(name, out_index, image_size)


def _examined_in_memory(name: str, out_index: int | None, image_size: int) -> _Facts:
    try:
        return _examined(name, out_index, image_size)
    except InputError:
        raise
    except FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        size = f"images of {image_size} pixels" if image_size else "images of its own size"
        msg = (
            f"Expected network {name!r} of timm to make a feature map from {size}, got: {reason}. Choose another "
            "image_size or network."
        )
        raise InputError(msg) from error


def _examined(name: str, out_index: int | None, image_size: int) -> _Facts:
    parameters = inspect.signature(type(_create(name, {})).__init__).parameters
    dynamic = {option: value for option, value in ANY_SIZE.items() if option in parameters}
    fixed = "img_size" in parameters and not dynamic
    options = {**dynamic, **({"img_size": image_size} if image_size and fixed else {})}
    network = _create(name, options).eval()
    cfg = cast(Mapping[str, Any], network.pretrained_cfg)
    native = int(cfg["input_size"][-1])
    side = image_size or (native if cfg.get("fixed_input_size") and not dynamic else 0)
    _check_norms(name, network)
    index = _pruned(network, out_index, name)
    images = torch.empty(1, 3, side or native, side or native)
    normed = _runs(network, images, index, normed=True)
    features = _feature_map(network, images, index, normed=normed)
    unused = tuple(_unused(network, features))
    parts = _parts(network, unused)
    batch_norms = tuple(path for path, module in network.named_modules() if isinstance(module, BATCH_NORM))
    _remove(network, unused)
    removable = _runs(network, images, index, normed=normed)
    mean, std, classifier = (cfg.get(key) or () for key in ("mean", "std", "classifier"))
    prefixes = tuple(f"{each}." for each in ([classifier] if isinstance(classifier, str) else classifier))
    width = int(features.shape[1])
    return _Facts(
        options, side, width, normed, unused, removable, parts, batch_norms, tuple(mean), tuple(std), prefixes
    )


def _check_name(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        msg = f"Expected the package timm to be installed for model timm, got none. Run: {installing('pretrained')}."
        raise InputError(msg)
    from timm.models import is_model, list_models, split_model_name_tag

    # timm would fetch what "hf-hub:..." names.
    base, tag = split_model_name_tag(name)
    if not is_model(base) or base != name.partition(".")[0]:
        known = list_models()
        hint = nearest(base, known)
        hint = hint if hint.startswith("Did") else f"timm.list_models() gives all {len(known)}."
        msg = f"Expected name of model timm to be a network of timm, got {name!r}. {hint}"
        raise InputError(msg)
    names = [each.partition(".") for each in list_models(f"{base}*", include_tags=True)] if tag else []
    tags = [each[2] for each in names if each[0] == base]
    if tag and tag not in tags:
        msg = f"Expected {name!r} to end in a tag of timm's {base}, got {tag!r}. {nearest(tag, tags)}"
        raise InputError(msg)


def _create(name: str, options: Mapping[str, Any]) -> nn.Module:
    from timm import create_model

    # A classifier of one label keeps every layer below it, for weights that have them.
    network: nn.Module = create_model(name, pretrained=False, num_classes=1, **options)
    return network


def _check_norms(name: str, network: nn.Module) -> None:
    for path, module in network.named_modules():
        if not isinstance(module, BATCH_NORM) and getattr(module, "running_var", None) is not None:
            msg = (
                f"Expected statistics of timm {name} to be those of BatchNorm, got a {type(module).__name__} at "
                f"{path!r}. Choose another network."
            )
            raise InputError(msg)


def _pruned(network: nn.Module, out_index: int | None, name: str = "") -> int | None:
    """Take off what comes after the intermediate map; its number then."""
    if out_index is None:
        return None
    try:
        kept = cast(Any, network).prune_intermediate_layers([out_index], prune_norm=False, prune_head=True)
    except (AssertionError, IndexError, ValueError) as error:
        count = len(cast(Any, network).feature_info)
        msg = (
            f"Expected out_index of timm {name} to be one of its {count} maps, {-count} to {count - 1}, "
            f"got {out_index}. -1 is the last."
        )
        raise InputError(msg) from error
    return int(kept[0])


def _unused(network: nn.Module, features: Tensor) -> Iterator[str]:
    """Names of parameters that ``features`` was made without."""
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    tensors = [network.get_parameter(name) for name in names]
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(features.sum(), tensors, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            yield name


def _remove(network: nn.Module, unused: Sequence[str]) -> None:
    """Take parameters out of ``network``, and BatchNorm layers without any left."""
    for name in unused:
        path, _, own = name.rpartition(".")
        module = network.get_submodule(path)
        setattr(module, own, None)
        if isinstance(module, BATCH_NORM) and not list(module.parameters()):
            network.set_submodule(path, nn.Identity())


def _runs(network: nn.Module, images: Tensor, out_index: int | None, *, normed: bool) -> bool:
    """Whether ``network`` makes its map so: with this norm, without what was removed."""
    try:
        _feature_map(network, images, out_index, normed=normed)
    except FAILURES:
        return False
    return True


def _parts(network: nn.Module, unused: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The coarse groups of parameters; a group of norms alone belongs to the one before."""
    from timm.models import group_parameters

    try:
        groups = group_parameters(network, cast(Any, network).group_matcher(coarse=True))
    except FAILURES:  # timm knows no groups of some networks
        groups = {0: [name for name, _ in network.named_parameters()]}
    parts: list[list[str]] = []
    for _, every in sorted(groups.items()):
        names = [name for name in every if name not in unused]
        if parts and all(network.get_parameter(name).ndim <= 1 for name in names):
            parts[-1] += names
        elif names:
            parts.append(names)
    return tuple(tuple(part) for part in parts)

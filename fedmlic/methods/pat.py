"""PAT: the score of the whole image, and beside it that of the patch which shows the object.

A label that usually stands beside others gets a high score where only the others are (the indirect
effect). Patching-based training adds the direct effect: the image is cut into a grid of patches, and
the evidence of that patch counts which shows the object itself, chosen softly and for every label by
itself (``fedmlic.patches``). With h the backbone's features averaged over places,

    g = W_g h(image);   a_m = W_a h(patch_m);   e_m = W_e h(patch_m)
    d = sum_m softmax_m(a_m) e_m                          (for each label by itself)
    training:    ASL(g, labels) + ASL(d, labels)
    prediction:  sigmoid((g + d) / 2)

Deviations: UNKNOWN and UNCERTAIN entries take no part in either loss (the source has complete
labels); the loss is a mean over known entries where the authors sum; views of an image are changed
at random only if ``views`` says so; the server's model is the averaged one, with no moving average of
weights beside it. All of them, one by one: ``docs/methods/pat.md``.

Source: Xie et al., "Counterfactual Reasoning for Multi-Label Image Classification via Patching-Based
Training" (ICML 2024, arXiv 2404.06287).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmlic.augmentation import Change
from fedmlic.errors import InputError
from fedmlic.losses import asymmetric, known_mean
from fedmlic.method import Inputs, Local, Method, Objective, Task, no_inputs, none
from fedmlic.patches import check_grid, check_small_patches, cut, pivot
from fedmlic.training import trainer
from fedmlic.views import changed, check_changes

if TYPE_CHECKING:
    from fedmlic.model import Backbone


class PatchedClassifier(nn.Module):
    """One backbone for the whole image and its patches, with a linear head for each purpose.

    Args:
        backbone: makes the feature map.
        num_labels: labels to predict.
        grid: n, patches in a row and in a column.
        cross: whether patches have heads for attention and for evidence, or one for both.
        temperature: of the softmax over patches.
        upsample: whether patches are resized to the size of the image.
    """

    def __init__(
        self, backbone: Backbone, num_labels: int, *, grid: int, cross: bool, temperature: float, upsample: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_labels)
        self.evidence = nn.Linear(backbone.num_features, num_labels)
        # A bias would be the same for all patches and so change nothing; Adam would let rounding errors drive it.
        self.attention = nn.Linear(backbone.num_features, num_labels, bias=False) if cross else None
        self.grid, self.temperature, self.upsample = grid, temperature, upsample

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Logits float32 ``[2, batch, labels]``: of the whole image (g) and of the pivot patch (d).

        Args:
            images: float32 ``[batch, channels, height, width]``.
            patches: float32 ``[n * n, batch, channels, height', width']``; None: cut from ``images``.
        """
        if patches is None:
            patches = cut(images, self.grid, upsample=self.upsample)
        whole, parts = self.features(images, patches)
        evidence = self.evidence(parts).float()
        attention = evidence if self.attention is None else self.attention(parts).float()
        return torch.stack([self.head(whole).float(), pivot(attention, evidence, self.temperature)])

    def features(self, images: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's features averaged over places: ``[batch, features]``, ``[n * n, batch, features]``."""
        if not self.training:
            # One patch of all images at a time: no more memory than one prediction takes.
            parts = torch.stack([self.read(patch) for patch in patches])
            return self.read(images), parts
        if patches.shape[-2:] != images.shape[-2:]:
            parts = self.read(patches.flatten(0, 1)).view(*patches.shape[:2], -1)
            return self.read(images), parts
        # One pass, whole images first: BatchNorm sees one batch of whole images and patches.
        found = self.read(torch.cat([images, patches.flatten(0, 1)]))
        return found[: len(images)], found[len(images) :].view(*patches.shape[:2], -1)

    def read(self, images: Tensor) -> Tensor:
        """``[batch, features]`` of images of any size."""
        found: Tensor = self.backbone(images).mean(dim=(2, 3))
        return found


def pat(
    *,
    grid: Annotated[int, Field(ge=1)] = 2,
    mode: Literal["cross", "self"] = "cross",
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    patch_upsample: bool = True,
    views: tuple[Change, ...] = (),
    gamma_pos: Annotated[float, Field(ge=0)] = 0.0,
    gamma_neg: Annotated[float, Field(ge=0)] = 4.0,
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05,
    reduction: Literal["mean", "sum"] = "mean",
    attention: Literal["shared", "private"] = "shared",
) -> Method:
    """Patching-based training: the whole image's score and the pivot patch's, both by asymmetric loss.

    Args:
        grid: n, patches in a row and in a column; with 1 the one patch is the image.
        mode: patches have a head for attention and one for evidence (``cross``, as in all published
            runs), or one for both (``self``).
        temperature: of the softmax over patches; above 0.
        patch_upsample: resize patches to the size of the image, as published; else the backbone gets
            them as small as they are, for 2 passes' cost in place of n * n + 1.
        views: random changes of the whole image and of every patch, each with draws of its own, in
            this order, out of ``flip``, ``shift``, ``crop``, ``colours``, ``cutout``,
            ``randaugment`` (``fedmlic.views.changed``; for images of 1 or 3 channels); the authors' are
            ``['cutout', 'randaugment']``.
        gamma_pos: focusing exponent for present entries, 0 or more.
        gamma_neg: focusing exponent for absent entries, 0 or more.
        margin: probability that absent entries may have for free, in [0, 1).
        reduction: mean over the known entries of a batch, or their sum (the authors'), of either loss.
        attention: exchange the attention head, or every client keeps its own (``private``).
    """
    if mode == "self" and attention == "private":
        msg = "Expected mode='cross' with attention='private', got mode='self', which has no head for attention alone."
        raise InputError(msg)

    def build(task: Task) -> nn.Module:
        check_grid(*task.image_shape[:2], grid)
        check_changes(views, task.image_shape[2])
        backbone = task.model.build(task.image_shape[2])
        if not patch_upsample:
            check_small_patches(backbone.eval(), task.image_shape, grid)
        return PatchedClassifier(
            backbone.train(),
            task.num_labels,
            grid=grid,
            cross=mode == "cross",
            temperature=temperature,
            upsample=patch_upsample,
        )

    def inputs(local: Local) -> Inputs:
        rng = local.torch_rng("views")

        def of(images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            del labels, numbers
            patches = cut(images, grid, upsample=patch_upsample)
            parts = changed(patches.flatten(0, 1), views, rng).view(patches.shape)
            return changed(images, views, rng), parts

        return Inputs(of, dict)

    def loss(network: nn.Module, images: Tensor, labels: Tensor, *changed_views: Tensor) -> Tensor:
        whole, part = network(*(changed_views or (images,)))
        return one_loss(whole, labels) + one_loss(part, labels)

    def one_loss(logits: Tensor, labels: Tensor) -> Tensor:
        entries = asymmetric(logits, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
        return entries.sum() if reduction == "sum" else known_mean(entries, labels)

    objective = Objective(loss, inputs if views else no_inputs)

    def private(network: nn.Module) -> list[str]:
        return [name for name in label_rows(network) if name.startswith("attention.")]

    kept = private if attention == "private" else none
    return Method(build, trainer(objective), predict, label_rows, kept, objective, needs_pixels=True)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``: the sigmoid of the mean of both logits."""
    return torch.sigmoid(network(images).mean(dim=0))


def label_rows(network: nn.Module) -> list[str]:
    """Names of the tensors with one row per label: all that is not of the backbone."""
    return [name for name, _ in network.named_parameters() if not name.startswith("backbone.")]

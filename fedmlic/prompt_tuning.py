"""Prompts that are trained on a tower which stays as it is: what hp_dval, promptfl, dualcoop and fedtpg share.

An image tower gives views of an image (the whole of it, or its places). A frozen text half reads every label's name
behind contexts, vectors that are trained or generated (``fedmlic.prompt_learner``). A method says what its contexts
are and how views and texts become scores.

While the tower does not train, an image's views are the same in every step. They come from maps on the disk
(``fedmlic.features``) where these are used; elsewhere ``KeptViews`` keeps them for one turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from fedmlic.errors import InputError
from fedmlic.losses import asymmetric, balanced_mean, binary_cross_entropy, known_mean
from fedmlic.method import Inputs, Local, Method, Objective, Task
from fedmlic.model import Backbone, TwoViews
from fedmlic.pretrained import freeze
from fedmlic.prompt_learner import PromptLearner, Reader
from fedmlic.training import trainer

LARGEST_CACHE = 2**30
"""Bytes of features that a client keeps during a turn in which its tower does not train."""

ALONE = "the blocks of its text half are computed again in the backward pass"
"""Why clients that train prompts cannot be trained at once."""

LossName = Literal["bce", "balanced_bce", "asl"]


class WholeView(Backbone):
    """Another backbone's view of the whole image, as a map of one place.

    It is the class token where the tower gives its tokens and has one, else the mean over all places.

    Args:
        tower: the other backbone.
    """

    def __init__(self, tower: Backbone) -> None:
        super().__init__()
        self.both = TwoViews(tower)
        self.num_features, self.bn_policy = tower.num_features, tower.bn_policy

    def forward(self, images: Tensor) -> Tensor:
        """``[batch, features, 1, 1]``."""
        views: Tensor = self.both(images)
        return views[:, :, :1]


class PromptedNetwork(nn.Module, ABC):
    """An image tower and a frozen text half that reads the labels' names behind contexts.

    A subclass says what the contexts are (``contexts``) and how views and texts become scores (``scores``).

    Args:
        backbone: of the views of an image.
        learner: the labels' prompts.

    Attributes:
        still: names of the modules that are never in training mode.
    """

    def __init__(self, backbone: Backbone, learner: PromptLearner) -> None:
        super().__init__()
        self.still: tuple[str, ...] = ("learner",)
        self.backbone, self.learner = backbone, learner
        self._known: tuple[Tensor, Tensor] | None = None

    def forward(self, given: Tensor, part: str = "probable", *more: Tensor) -> Tensor:
        """One step of the computation, so that a loss calls the network alone.

        Args:
            given: images ``[batch, channels, height, width]`` or maps in their place; for ``scores`` views.
            part: ``views`` gives ``[batch, views, features]``; ``texts`` gives ``[sets, labels, features]``, behind
                the contexts that ``more`` decides; ``scores`` gives logits ``[batch, labels]`` of views and
                texts; ``probable`` gives logits of images for prediction.
            more: see ``part``.
        """
        if part == "views":
            return self.views(given)
        if part == "texts":
            return self.read(*more)
        if part == "scores":
            return self.scores(given, *more)
        return self.scores(self.views(given), self.texts())

    def views(self, images: Tensor) -> Tensor:
        """``[batch, views, features]``."""
        found: Tensor = self.backbone(images).flatten(2).transpose(1, 2)
        return found

    @abstractmethod
    def contexts(self, *given: Tensor) -> Tensor:
        """``[sets, M, width]``, or one for every label: ``[sets, labels, M, width]``.

        Args:
            given: what a turn gives (``prompt_method``); nothing for predictions.
        """

    @abstractmethod
    def scores(self, views: Tensor, texts: Tensor | None = None) -> Tensor:
        """Logits float32 ``[batch, labels]`` of views ``[batch, views, features]``.

        Args:
            views: of images.
            texts: ``[sets, labels, features]``; None: of the hand-written prompts, where the method has any.
        """

    def read(self, *given: Tensor) -> Tensor:
        """Texts float32 ``[sets, labels, features]`` behind the contexts."""
        found: Tensor = self.learner(self.contexts(*given))
        return found.float()

    @torch.no_grad()
    def texts(self) -> Tensor | None:
        """Texts for prediction ``[sets, labels, features]``, computed once for the same contexts."""
        with torch.inference_mode(mode=False):
            contexts = self.contexts().clone()
            known = self._known
            if known is None or known[0].device != contexts.device or not torch.equal(known[0], contexts):
                known = self._known = (contexts, self.read().clone())
            return known[1]

    def train(self, mode: bool = True) -> PromptedNetwork:  # noqa: FBT001, FBT002  (torch's signature)
        """Training mode, except for what is ``still``."""
        super().train(mode)
        for name in self.still:
            self.get_submodule(name).eval()
        return self


def frozen_parts(
    task: Task, backbone: Backbone, read: Callable[..., Reader], template: str, context_length: int
) -> PromptLearner:
    """The labels' prompts for a backbone, which is frozen here.

    Args:
        task: whose labels.
        backbone: whose features are compared with texts.
        read: opens the text half: ``fedmlic.prompt_learner.open_reader`` without ``features`` and ``seed``.
        template: the hand-written prompt, with ``{}`` for the name.
        context_length: M.

    Raises:
        InputError: features of image and text have another width.
    """
    reader = read(features=backbone.num_features, seed=task.seed)
    check_shared(backbone, reader.features)
    freeze(backbone, {name for name, _ in backbone.named_parameters()})
    return PromptLearner(reader, task.label_names, template, context_length)


def check_shared(backbone: Backbone, features: int) -> None:
    """Raise ``InputError`` unless image and text features have one width, where nothing else would make it one.

    Args:
        backbone: of the image.
        features: of the text.
    """
    if backbone.num_features != features:
        msg = (
            f"Expected the model's features to be of the text half's width {features}, got {backbone.num_features}: "
            "nothing between them trains. Use model clip_image(path=..., projection=True) of the same CLIP."
        )
        raise InputError(msg)


def prompt_method(
    build: Callable[[Task], PromptedNetwork],
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Callable[[Local], tuple[Tensor, ...]] = lambda _: (),
) -> Method:
    """The method that trains what makes a network's contexts, and nothing else, by ``loss(logits, labels)``.

    Args:
        build: makes the network, with a backbone that is frozen (``frozen_parts``); what trains is exchanged.
        loss: scalar loss of logits float32 ``[batch, labels]`` and int8 labels of the same shape.
        inputs: what decides a client's contexts during a turn (see ``PromptedNetwork.contexts``).
    """

    def of_views(network: nn.Module, images: Tensor, views: Tensor, labels: Tensor, *given: Tensor) -> Tensor:
        return loss(network(views, "scores", network(images, "texts", *given)), labels)

    objective = on_kept_views(of_views, inputs)
    return Method(build, trainer(objective), predict, objective=objective, freezes=True)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``: the sigmoid of a network's logits."""
    logits: Tensor = network(images)
    return torch.sigmoid(logits.float())


def entry_loss(
    name: LossName, *, gamma_pos: float, gamma_neg: float, margin: float, reduction: str = "mean"
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss over known entries, ``(logits [batch, labels], labels) -> scalar``; 0 where nothing is known.

    Args:
        name: ``bce``; ``balanced_bce``, the mean over present entries and that over absent ones; ``asl``.
        gamma_pos: of ``asl``: focusing exponent of present entries.
        gamma_neg: of ``asl``: that of absent ones.
        margin: of ``asl``: probability that absent entries may have for free.
        reduction: ``mean`` over known entries, or their ``sum``; ``balanced_bce`` knows its means alone.

    Raises:
        InputError: a sum of ``balanced_bce``.
    """
    if name == "balanced_bce":
        if reduction == "sum":
            msg = "Expected reduction='mean' with loss='balanced_bce', which adds two means, got 'sum'. Change one."
            raise InputError(msg)
        return lambda logits, labels: balanced_mean(binary_cross_entropy(logits, labels), labels)
    entries: Callable[[Tensor, Tensor], Tensor] = binary_cross_entropy
    if name == "asl":
        entries = partial(asymmetric, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    if reduction == "sum":
        return lambda logits, labels: entries(logits, labels).sum()
    return lambda logits, labels: known_mean(entries(logits, labels), labels)


# Views that are kept during a turn


def on_kept_views(
    loss: Callable[..., Tensor], inputs: Callable[[Local], tuple[Tensor, ...]] = lambda _: ()
) -> Objective:
    """The objective of a loss of views, which are computed once a turn where that pays.

    A client without any annotation takes no step: what a loss adds that needs no labels, and weight decay, would move
    its contexts.

    Args:
        loss: ``(network, images, views, labels, *inputs) -> scalar``; what it does with views must not need a
            gradient of the backbone.
        inputs: of a turn, the same for every batch.
    """

    def of_images(
        network: nn.Module, images: Tensor, labels: Tensor, kept: Tensor, *given: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        if kept.numel():
            return loss(network, images, kept, labels, *given)
        views = network(images, "views")
        return loss(network, images, views, labels, *given), views

    def of_turn(local: Local) -> Inputs:
        given = inputs(local)
        if not _pays(local):
            return Inputs(lambda images, *_: (images.new_empty(0), *given), dict)
        kept = KeptViews(given, local.shard.num_images if local.shard is not None else 0)
        return Inputs(kept.of, dict, kept.seen)

    return Objective(of_images, of_turn, needs_annotations=True, one_by_one=ALONE)


def _pays(local: Local) -> bool:
    """Whether an image is looked at more than once in a turn, always as it is and by the loss alone."""
    settings, shard = local.experiment, local.shard
    if shard is None or not shard.num_images or settings.augmentation != "none" or local.hooks:
        return False
    passes = settings.local_epochs
    if settings.local_steps:
        passes = settings.local_steps * settings.batch_size // shard.num_images
    return passes > 1 and not getattr(shard.images, "as_maps", False)


class KeptViews:
    """Views of a client's images in a turn in which its tower does not train: each is computed once.

    The first pass gives them back beside the loss; later passes get them in place of the tower.

    Args:
        given: what every batch gets after them.
        num_images: of the client.
    """

    def __init__(self, given: tuple[Tensor, ...], num_images: int) -> None:
        self._given, self._num_images = given, num_images
        self._there = torch.zeros(num_images, dtype=torch.bool)
        self._views: Tensor | None = None
        self._fits = True

    def of(self, images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        """The batch's views, or an empty tensor where they must be computed, and ``given``; see ``Inputs``."""
        del labels
        if self._views is not None and bool(self._there[numbers].all()):
            return (self._views[numbers.to(images.device)], *self._given)
        return (images.new_empty(0), *self._given)

    def seen(self, numbers: Tensor, *views: Tensor) -> None:
        """Keep views ``[batch, views, features]``, unless the client's are larger than ``LARGEST_CACHE``."""
        for each in views:
            if self._views is None and self._fits:
                self._fits = each[0].numel() * each.element_size() * self._num_images <= LARGEST_CACHE
                if self._fits:
                    self._views = each.new_empty(self._num_images, *each.shape[1:])
            if self._views is not None:
                self._views[numbers.to(each.device)] = each
                self._there[numbers] = True


# Names that are asked for after training


def own_contexts(network: PromptedNetwork, learner: PromptLearner) -> Tensor:
    """The network's own contexts, whichever names are asked for."""
    del learner
    return network.contexts()


def ask(
    network: nn.Module,
    task: Task,
    names: Sequence[str],
    read: Callable[..., Reader],
    template: str,
    contexts: Callable[[PromptedNetwork, PromptLearner], Tensor] = own_contexts,
) -> Callable[[Tensor], Tensor]:
    """Probabilities of labels by their names behind a trained network's contexts; see ``Method.ask``.

    Args:
        network: of ``PromptedNetwork``, with contexts that all labels share.
        task: what was learned.
        names: of the training, or others.
        read: opens the text half, as in ``frozen_parts``.
        template: the hand-written prompt.
        contexts: ``(network, the names' prompts) -> [sets, M, width]``; the network's own by default.
    """
    trained = cast("PromptedNetwork", network)
    handwritten = trained.learner.handwritten
    reader = read(features=handwritten.shape[1], seed=task.seed)
    learner = PromptLearner(reader, names, template, trained.learner.num_context).to(handwritten.device)
    with torch.no_grad():
        texts = learner(contexts(trained, learner)).float()
    return lambda images: torch.sigmoid(trained.scores(trained.views(images), texts))

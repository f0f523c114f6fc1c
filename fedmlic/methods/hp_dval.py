"""HP-DVAL: an image tower aligned with texts in two views, then prompts for either view.

With f_0 the feature of a whole image, f_1 ... f_P those of its places, t_c, u_c the texts of label c for the view of
the whole and of the places, and <.,.> the cosine:

    s_c = exp(w) (alpha <t_c, f_0> + (1 - alpha) mean of the k largest of <u_c, f_1> ... <u_c, f_P>)

*Stage 1, dual-view alignment.* t = u = the features of a hand-written prompt, frozen. The image tower (all of it, its
last blocks or adapters: the model's ``trainable``) learns, held near a frozen teacher: L = L_db + distill * |teacher -
f_0|, of features as they are, not of length 1. *Stage 2, hierarchical prompts.* The tower stays as it is. t and u are
the features of prompts whose first M vectors are trained, one context for each view, shared by all labels, read by
CLIP's frozen text half (``fedmlic.prompt_learner``): L = L_db + consistency * |hand-written - t|, of texts as
the scores see them: of length 1, with ``scores="mkt"`` as they are. Only the two contexts are sent.

L_db is the distribution-balanced loss with its focal factor (``fedmlic.distribution_balanced``), by default on the
counts of all clients.

A context that is what it was at the start, bit for bit, has no part in predictions: its view has the hand-written
texts. After stage 1 alone that is so for both contexts, with a private context at every client not drawn since.

Deviations, one by one, and choices where paper and release disagree: ``docs/methods/hp_dval.md``.

Source: HP-DVAL, "dual-view alignment learning with hierarchical prompts" for class-imbalanced multi-label image
classification; the paper's tables and its release are quoted in ``docs/methods/hp_dval.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic import spec
from fedmlic.distribution_balanced import Balance, counted, known_counts
from fedmlic.errors import InputError
from fedmlic.method import Inputs, Local, Method, Objective, Phase, Task, needs_rounds_after, none
from fedmlic.model import Model, TwoViews
from fedmlic.pretrained import freeze
from fedmlic.prompt_learner import PromptLearner, Reader, open_reader
from fedmlic.prompt_tuning import ALONE, PromptedNetwork, check_shared, on_kept_views, predict
from fedmlic.training import trainer

TRIAL = "hp_dval(weights='random', counts='client')"
"""How it is built where no weights are at hand: for tests."""

TEACHER = "teacher=\"clip_image(path='...', projection=True)\""

CONTEXTS = ("context_whole", "context_places")


class Scoring(NamedTuple):
    """How views become scores.

    Attributes:
        alpha: share of the whole image, in [0, 1].
        top: places that a label's local score is the mean of.
        scores: ``cosine``, or ``mkt``: products of features as they are, an image's scores of either view divided
            by their length over labels before they are mixed.
    """

    alpha: float
    top: int
    scores: str


def fused(views: Tensor, whole: Tensor, places: Tensor, how: Scoring, scale: Tensor | float = 1.0) -> Tensor:
    """Scores float32 ``[batch, labels]``.

    Args:
        views: ``[batch, 1 + places, features]``: the whole image, then its places.
        whole: ``[labels, features]``, texts for the whole image.
        places: ``[labels, features]``, texts for places.
        how: the weights.
        scale: exp(w), above 0; with ``mkt`` it cancels.

    >>> views, texts = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]]), torch.eye(2)
    >>> fused(views, texts, texts, Scoring(0.5, 1, "mkt"))
    tensor([[0.5000, 0.5000]])
    """
    with torch.autocast(views.device.type, enabled=False):
        views, whole, places = views.float(), whole.float(), places.float()
        if how.scores == "cosine":
            views, whole, places = (F.normalize(each, dim=-1) for each in (views, whole, places))
        local = views[:, 1:] @ places.T
        best = local.topk(min(how.top, local.shape[1]), dim=1).values.mean(dim=1)
        total = views[:, 0] @ whole.T
        if how.scores == "mkt":
            total, best = (F.normalize(scale * each, dim=1) for each in (total, best))
            return how.alpha * total + (1 - how.alpha) * best
        return (how.alpha * total + (1 - how.alpha) * best) * scale


class DualViewNetwork(PromptedNetwork):
    """An image tower with two views, a text half with two contexts.

    Args:
        backbone: of ``TwoViews``.
        learner: the labels' prompts.
        teacher: of the view of the whole image, or None.
        how: how views become scores.
        scale: exp(w) at the start.
        start: how contexts begin.
        prompted: names of the contexts that are used; another view has the hand-written texts.

    Attributes:
        aligned: names of the tensors that train in stage 1.
    """

    def __init__(
        self,
        backbone: TwoViews,
        learner: PromptLearner,
        teacher: nn.Module | None,
        how: Scoring,
        *,
        scale: float,
        start: str,
        prompted: Sequence[str] = CONTEXTS,
    ) -> None:
        super().__init__(backbone, learner)
        self.how = how
        given, wanted = backbone.num_features, learner.handwritten.shape[1]
        self.embedding: nn.Module = nn.Identity()
        if given != wanted:
            self.embedding = nn.Sequential(nn.Linear(given, wanted), nn.Linear(wanted, wanted))
        self.teacher = teacher
        if teacher is not None:
            self.still = ("learner", "teacher")
        self.context_whole = nn.Parameter(learner.begin(start))
        self.context_places = nn.Parameter(learner.begin(start))
        self.register_buffer("start", self.contexts().detach().clone())
        self.prompted = prompted
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.aligned = self._aligned()

    start: Tensor

    def _aligned(self) -> tuple[str, ...]:
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        layers = [(n, m) for n, m in self.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
        moments = [f"{name}.running_{part}" for name, m in layers if m.track_running_stats for part in ("mean", "var")]
        return tuple(name for name in (*names, *moments) if name not in CONTEXTS)

    def contexts(self, *given: Tensor) -> Tensor:
        """``[2, M, width]``: of the whole image, of places."""
        del given
        return torch.stack([self.context_whole, self.context_places])

    def forward(self, given: Tensor, part: str = "probable", *more: Tensor) -> Tensor:
        """One step of the computation, so that a loss calls the network alone.

        Args:
            given: images ``[batch, channels, height, width]`` or maps in their place; for ``scores`` views.
            part: as of ``PromptedNetwork``, with views ``[batch, 1 + places, features]`` and texts ``[3, labels,
                features]``: of the two trained contexts, and hand-written; ``taught`` gives views and, as one more
                view, the teacher's of the whole image.
            more: the texts.
        """
        return self._taught(given) if part == "taught" else super().forward(given, part, *more)

    def read(self, *given: Tensor) -> Tensor:
        """``[3, labels, features]``, of any length: for the whole image, for places, hand-written."""
        del given
        trained = self.learner(torch.stack([self.get_parameter(name) for name in self.prompted])).float()
        written = self.handwritten()
        rows = dict(zip(self.prompted, trained, strict=True))
        return torch.stack([*(rows.get(name, written) for name in CONTEXTS), written])

    def handwritten(self) -> Tensor:
        """``[labels, features]``, hand-written texts; of length 1 where their length does not matter."""
        return self.learner.handwritten if self.how.scores == "cosine" else self.learner.handwritten_raw()

    def views(self, images: Tensor) -> Tensor:
        """``[batch, 1 + places, features]``: the whole image, then its places."""
        found: Tensor = self.embedding(super().views(images))
        return found

    def _taught(self, images: Tensor) -> Tensor:
        found = self.views(images)
        if self.teacher is None:  # a tower that does not train is its own copy
            target = found[:, 0].detach()
        else:
            with torch.no_grad():
                target = self.teacher(images).flatten(2)[:, :, 0]
        return torch.cat([found, target[:, None].to(found.dtype)], dim=1)

    def scores(self, views: Tensor, texts: Tensor | None = None) -> Tensor:
        """Logits ``[batch, labels]``; None: of the hand-written prompts.

        Args:
            views: ``[batch, 1 + places, features]``.
            texts: ``[2 or more, labels, features]``, of any length: for the whole image, for places.
        """
        handwritten = self.handwritten()
        whole, places = (handwritten, handwritten) if texts is None else (texts[0], texts[1])
        return fused(views, whole, places, self.how, self.log_scale.exp())

    def moved(self) -> tuple[bool, ...]:
        """Whether the context of the whole image, and that of places, is another than at the start."""
        pairs = zip(self.contexts(), self.start, strict=True)
        return tuple(not torch.equal(context, start) for context, start in pairs)

    def texts(self) -> Tensor | None:
        """Texts for prediction ``[2, labels, features]``, computed once for the same contexts; None: hand-written.

        A context that has not moved was trained by nobody, or not yet by the client that keeps it: its view has
        the hand-written texts.
        """
        moved = self.moved()
        texts = super().texts() if any(moved) else None
        if texts is None:
            return None
        return torch.stack([row if there else texts[2] for there, row in zip(moved, texts, strict=False)])


def hp_dval(
    *,
    weights: str = "",
    text_model: str = "ViT-B-16-quickgelu",
    template: str = "a photo of a {}",
    schedule: Literal["two_stages", "alignment", "prompts", "joint"] = "two_stages",
    align_rounds: Annotated[int, Field(ge=1)] = 20,
    context_length: Annotated[int, Field(ge=1)] = 4,
    start: Literal["normal", "template"] = "normal",
    prompted: Literal["both", "whole", "places"] = "both",
    local_context: Literal["shared", "private"] = "shared",
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.4,
    top: Annotated[int, Field(ge=1)] = 32,
    scores: Literal["cosine", "mkt"] = "cosine",
    scale: Annotated[float, Field(gt=0)] = 20.0,
    teacher: str = "",
    distill: Annotated[float, Field(ge=0)] = 1.0,
    consistency: Annotated[float, Field(ge=0)] = 1.0,
    consistent_view: Literal["whole", "places"] | None = None,
    counts: Literal["client", "global"] = "global",
    positive_share: bool = False,
    rebalance: bool = True,
    floor: Annotated[float, Field(ge=0)] = 0.1,
    steepness: Annotated[float, Field(ge=0)] = 10.0,
    middle: Annotated[float, Field(ge=0)] = 0.2,
    kappa: Annotated[float, Field(ge=0)] = 0.05,
    tolerance: Annotated[float, Field(gt=0)] = 2.0,
    focal: bool = True,
    focal_by: Literal["entry", "batch"] = "entry",
    present_scale: Annotated[float, Field(gt=0)] = 1.0,
) -> Method:
    """Dual-view alignment of image and text, then hierarchical prompts (HP-DVAL).

    Args:
        weights: CLIP's text half: a folder in Hugging Face's format (that of ``clip_image``), or a file of
            open_clip's; ``random``: a tiny one that knows nothing, for tests.
        text_model: open_clip's name of a file's architecture; a folder says it itself.
        template: the hand-written prompt, with ``{}`` for the name.
        schedule: ``two_stages``, the paper's; or one stretch of rounds: ``alignment`` (stage 1 alone),
            ``prompts`` (stage 2 on the tower as it starts), ``joint`` (everything at once).
        align_rounds: rounds of stage 1 in ``two_stages``, fewer than ``num-rounds``; all others are of stage 2.
        context_length: M, trained vectors of each context.
        start: contexts begin ``normal``, with a deviation of 0.02, or as the words of the ``template``.
        prompted: which views have a trained context; the other one keeps the hand-written texts, and its
            context is not sent.
        local_context: exchange the context of places, or every client keeps its own (``private``).
        alpha: weight of the whole image, in [0, 1]; places have the rest.
        top: k, places of which a label's local score is the mean.
        scores: ``cosine``, or ``mkt``, the release's: products, and an image's scores of either view scaled to
            length 1 before they are mixed, which needs 2 labels or more.
        scale: factor of scores at the start; it trains in stage 1. With ``mkt`` it cancels.
        teacher: the model that the view of the whole image is held near, such as
            ``"clip_image(path='...', projection=True)"``; empty: a copy of the tower as it starts.
        distill: weight of the mean absolute difference from the teacher, of features that are not scaled.
        consistency: weight of the mean absolute difference of trained and hand-written texts: of length 1, with
            ``mkt`` as CLIP gives them.
        consistent_view: whose trained texts are compared: of the ``whole`` image (paper) or ``places`` (release).
            None: the prompted view, with both the whole image.
        counts: of all clients, counted once before the first round (needs ``allow-statistics``), or the
            client's own.
        positive_share: DB*: multiply logits of present entries by n_c over the largest count.
        rebalance: whether entries are re-weighted.
        floor: smallest weight of an entry (paper 0.1).
        steepness: of the weights (10).
        middle: of the weights (COCO-LT 0.2, VOC-LT 0.3).
        kappa: how strongly logits are shifted by their label's frequency (0.05).
        tolerance: how negatives are tolerated (COCO-LT 2, VOC-LT 5).
        focal: whether easy entries fade, exponent 2.
        focal_by: each ``entry`` fades by its own probability, or the ``batch`` by one factor of its mean log-loss
            (release).
        present_scale: factor of present entries' logits in stage 1 alone (``dbl`` of the release: COCO-LT 5, VOC-LT
            10).

    Raises:
        InputError: ``consistent_view`` is a view whose texts do not train, a context that does not train is to
            be private, or an option of the loss would change nothing.
    """
    _check_loss(schedule, present_scale, focal_by, focal=focal)
    if local_context == "private":
        _check_private(prompted, schedule)
    if consistency and schedule != "alignment":
        _check_view(prompted, consistent_view)
    chosen = tuple(name for name in CONTEXTS if prompted in {"both", name.removeprefix("context_")})
    own: tuple[str, ...] = CONTEXTS[1:] if local_context == "private" else ()
    balance = Balance(rebalance, floor, steepness, middle, kappa, tolerance, focal, positive_share, focal_by)
    read = partial(open_reader, weights, text_model, who="hp_dval")
    build = partial(
        _build,
        read=read,
        prompts=(template, context_length, start),
        prompted=chosen,
        how=Scoring(alpha, top, scores),
        scale=scale,
        trains=schedule,
        teacher=None if distill == 0 or schedule == "prompts" else teacher,
        real=weights != "random",
    )
    view = consistent_view or ("places" if prompted == "places" else "whole")
    stages = _stages(balance, present_scale, distill, (consistency, view, scores == "cosine"), counts)
    first, second = stages["alignment"], stages["prompts"]
    whole = stages["joint" if schedule == "two_stages" else schedule]
    method = Method(
        build,
        trainer(whole),
        predict,
        private=(lambda _: own) if own else none,
        objective=whole,
        statistics=counted if counts == "global" else None,
        ask=partial(_ask, read=read, template=template),
        needs_pixels=bool(teacher) and distill > 0 and schedule != "prompts",
        freezes=schedule == "prompts",
    )
    if schedule != "two_stages":
        return method
    phases = (
        Phase(trainer(first), align_rounds, _aligned, first),
        Phase(trainer(second), 0, lambda _: chosen, second),
    )
    hint = "schedule='alignment' is the first stage alone"
    refuses = needs_rounds_after("align_rounds", align_rounds, "its prompts train in the rounds", hint)
    return method._replace(phases=phases, refuses=refuses)


def _check_view(prompted: str, view: str | None) -> None:
    if view is not None and prompted not in {"both", view}:
        msg = (
            f"Expected consistent_view to be {prompted!r}, the prompted view, got {view!r}, whose texts are the "
            "hand-written ones: the term would be 0. Leave consistent_view out, or use prompted='both' or "
            "consistency=0.0."
        )
        raise InputError(msg)


def _check_loss(schedule: str, present_scale: float, focal_by: str, *, focal: bool) -> None:
    if present_scale != 1 and schedule in {"prompts", "joint"}:
        msg = (
            f"Expected present_scale to be 1 with schedule={schedule!r}, which has no stage 1, got {present_scale}. "
            "Leave present_scale out, or use schedule='two_stages' or 'alignment'."
        )
        raise InputError(msg)
    if focal_by == "batch" and not focal:
        msg = (
            "Expected focal_by to be 'entry' with focal=False, which fades nothing, got 'batch'. Leave one of them out."
        )
        raise InputError(msg)


def _check_private(prompted: str, schedule: str) -> None:
    if prompted == "whole" or schedule == "alignment":
        got = "prompted='whole'" if prompted == "whole" else "schedule='alignment'"
        msg = (
            f"Expected local_context='private' with a context of places that trains, got {got}: nothing would be "
            "private. Leave local_context out, or use prompted='both' and another schedule."
        )
        raise InputError(msg)


def _build(
    task: Task,
    *,
    read: Callable[..., Reader],
    prompts: tuple[str, int, str],
    prompted: Sequence[str],
    how: Scoring,
    scale: float,
    trains: str,
    teacher: str | None,
    real: bool,
) -> nn.Module:
    """The network; see ``hp_dval``. ``teacher`` is None where there is none.

    Raises:
        InputError: a single label with ``mkt``, or parts that do not fit each other.
    """
    if how.scores == "mkt" and task.num_labels < 2:
        msg = (
            "Expected 2 labels or more with scores='mkt', which divides scores by their length over labels, got "
            f"{task.num_labels}: every score would be 1 or -1. Use scores='cosine'."
        )
        raise InputError(msg)
    template, context_length, start = prompts
    backbone = TwoViews(task.model.build(task.image_shape[2]))
    reader = read(features=backbone.num_features, seed=task.seed)
    learner = PromptLearner(reader, task.label_names, template, context_length)
    if trains == "prompts":
        check_shared(backbone, reader.features)
        freeze(backbone, {name for name, _ in backbone.named_parameters()})
    taught = None if teacher is None else _teacher(task, teacher, backbone, reader.features, real=real)
    network = DualViewNetwork(backbone, learner, taught, how, scale=scale, start=start, prompted=prompted)
    for name in CONTEXTS:
        network.get_parameter(name).requires_grad_(trains != "alignment" and name in prompted)
    network.log_scale.requires_grad_(trains != "prompts")
    return network


def _stages(
    balance: Balance, present_scale: float, distill: float, consistency: tuple[float, str, bool], counts: str
) -> dict[str, Objective]:
    """What each schedule minimises; ``consistency`` is its weight, its view, and whether texts have length 1."""
    held, view, unit = consistency
    scaled = balance._replace(present_scale=present_scale)

    def align(network: nn.Module, images: Tensor, labels: Tensor, *known: Tensor) -> Tensor:
        views, pull = _views_and_pull(network, images, distill)
        return scaled.loss(network(views, "scores"), labels, *known) + pull

    def with_prompts(network: nn.Module, images: Tensor, views: Tensor, labels: Tensor, *known: Tensor) -> Tensor:
        texts = network(images, "texts")
        value = balance.loss(network(views, "scores", texts), labels, *known)
        return value + held * difference(texts, view, unit=unit)

    def joint(network: nn.Module, images: Tensor, labels: Tensor, *known: Tensor) -> Tensor:
        views, pull = _views_and_pull(network, images, distill)
        return with_prompts(network, images, views, labels, *known) + pull

    def inputs(local: Local) -> Inputs:
        known = _known(local, counts)
        return Inputs(lambda *_: known, dict)

    return {
        # Teacher and hand-written texts would pull a client that knows nothing, too.
        "alignment": Objective(align, inputs, needs_annotations=True, one_by_one=ALONE),
        "prompts": on_kept_views(with_prompts, partial(_known, counts=counts)),
        "joint": Objective(joint, inputs, needs_annotations=True, one_by_one=ALONE),
    }


def difference(texts: Tensor, view: str, *, unit: bool) -> Tensor:
    """The mean absolute difference of trained and hand-written texts, a scalar.

    Args:
        texts: ``[3, labels, features]``: trained for the whole image, for places; hand-written.
        view: ``whole`` or ``places``.
        unit: whether they are compared at length 1, else as they are.
    """
    trained, written = texts[0 if view == "whole" else 1].float(), texts[2].float()
    if unit:
        trained, written = F.normalize(trained, dim=1), F.normalize(written, dim=1)
    return F.l1_loss(trained, written)


def _views_and_pull(network: nn.Module, images: Tensor, distill: float) -> tuple[Tensor, Tensor | float]:
    """Views ``[batch, 1 + places, features]``, and the loss that holds the first near the teacher's."""
    if distill == 0:
        return network(images, "views"), 0.0
    both = network(images, "taught")
    return both[:, :-1], distill * F.l1_loss(both[:, 0].float(), both[:, -1].float())


def _known(local: Local, counts: str) -> tuple[Tensor, ...]:
    """Counts and shifts of labels."""
    return tuple(tensor.to(local.device) for tensor in known_counts(local, counts))


def _aligned(network: nn.Module) -> Sequence[str]:
    return cast("DualViewNetwork", network).aligned


def _teacher(task: Task, text: str, backbone: TwoViews, features: int, *, real: bool) -> nn.Module | None:
    """What the view of the whole image is held near; None: the backbone itself, which does not train.

    Raises:
        InputError: no such model, one of another width, or one without weights.
    """
    model: Model = spec.build("model", text) if text else task.model
    if real and not model.pretrained:
        msg = (
            f"Expected {'teacher' if text else 'model, its own teacher,'} to have weights, got one from scratch. "
            f"Give {TEACHER}, or distill=0."
        )
        raise InputError(msg)
    if not text and not any(p.requires_grad for p in backbone.parameters()) and backbone.num_features == features:
        return None
    # A copy, not the same tensors: the target must not move with the student.
    teacher = TwoViews(model.build(task.image_shape[2])) if text else copy.deepcopy(backbone)
    if teacher.num_features != features:
        msg = (
            f"Expected the teacher's features to be of the text half's width {features}, got {teacher.num_features}. "
            f"Give {TEACHER} of the same CLIP, or distill=0. As the model, clip_image needs projection=True, too."
        )
        raise InputError(msg)
    freeze(teacher, {name for name, _ in teacher.named_parameters()})
    return teacher


def _ask(
    network: nn.Module, task: Task, names: Sequence[str], read: Callable[..., Reader], template: str
) -> Callable[[Tensor], Tensor]:
    """Probabilities of labels by their names, those of the training and others; see ``Method.ask``."""
    trained = cast("DualViewNetwork", network)
    if trained.how.scores == "mkt":
        msg = (
            "Expected scores='cosine' to ask about further names, got 'mkt', in which a label's score depends on all "
            "labels that are asked for. Train with scores='cosine'."
        )
        raise InputError(msg)
    device = trained.start.device
    reader = read(features=trained.learner.handwritten.shape[1], seed=task.seed)
    learner = PromptLearner(reader, names, template, trained.learner.num_context).to(device)
    own = trained.contexts().detach()
    whole = places = learner.handwritten
    moved = trained.moved()
    if any(moved):
        with torch.no_grad():
            texts = learner(own)
        whole, places = (row if there else learner.handwritten for there, row in zip(moved, texts, strict=True))

    def probabilities(images: Tensor) -> Tensor:
        return torch.sigmoid(fused(trained.views(images), whole, places, trained.how, trained.log_scale.exp()))

    return probabilities

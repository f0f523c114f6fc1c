"""Diff-Feat: a linear classifier on features of a frozen diffusion transformer, whose block and timestep are searched.

1. *Search* (``search_rounds`` > 0). The first rounds look for the block and timestep whose features tell most of
   the labels, by a local search (``fedmlic.local_search``). In every round the clients score up to five candidates,
   the place and its neighbours: each fits a ridge regression on one half of its images, takes the average precision
   of every label on the other half, and the other way round; the server adds up average precision times positives,
   and positives, and steps. A candidate's score is the mean over labels of their quotient. Clients of different
   rounds may find their labels harder or easier, so only scores of one round are compared with each other. With
   ``score="pooled"`` the regressions are those of all clients' halves and a step takes two rounds: one for their
   sums, one for the scores (``fedmlic.pooled_scores``).
2. *Head*. A linear classifier on the features at the place found: solved in one round from exact sums over the clients
   (``fedmlic.solved_head``), or trained by rounds, through a joint space of ``width`` features if asked for. With
   ``texts``, an image's text vector is a second modality: projections of both are added (trained), or both stand side
   by side (solved), which is the same family of linear maps.

Without a search any backbone goes; features of a fixed block and timestep are computed once and kept on disk.

Deviations: search and head of the paper are centralised and could not be read in full; the moves, the score by ridge
regression at clients, and everything that ``docs/methods/diff_feat.md`` lists are this project's.

Source: "Diff-Feat" (arXiv 2509.15553); DDAE (Xiang et al., ICCV 2023) for features of diffusion models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedmlic.diffusion import KeptFeatures, TextTable, of_any_block
from fedmlic.errors import InputError
from fedmlic.local_search import LocalSearch, Place
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Method, Objective, Phase, Solution, Trained, needs_rounds_after, none
from fedmlic.pixel_scale import to_float
from fedmlic.pooled_scores import HALVES, fit_sums, fit_zeros, judged, regressions_of
from fedmlic.pretrained import freeze
from fedmlic.ridge_scores import cross_scores
from fedmlic.solved_head import Gram, SolvedHead, refuse_too_many
from fedmlic.training import held_images, trainer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.arrays import Resident
    from fedmlic.method import Local, Task
    from fedmlic.model import Backbone
    from fedmlic.shard import Shard

TRIAL = "diff_feat(search_rounds=0)"
"""Without a search any backbone goes."""

BATCH = 64
"""Images at once in a search."""

CANDIDATES = 5
"""Most candidates of a round: a place and its four neighbours."""

PRECISION, POSITIVES = "search/precision", "search/positives"
"""Names of the sums of a search: average precision times positives, and positives."""


class DiffFeatNetwork(nn.Module):
    """A linear classifier on features of a frozen backbone, and where a search for these features stands.

    Args:
        backbone: the frozen one.
        num_labels: labels.
        width: of the joint space of trained projections; 0 for none.
        texts: vectors of images' texts; None without.
        search: the search as it begins; None without.
        layer_norm: whether each feature vector is shifted and scaled to mean 0 and variance 1.
        pooled: whether candidates are scored by regressions of all clients.

    Attributes:
        place: float32 ``[5]``: block and timestep, steps of both, 1 once the search is over.
        probes: float32 ``[budget, 3]``: block, timestep and score of every candidate; -1 where there is none yet.
        regressions: with ``pooled``, float32 ``[2, 5, labels, features + 1]`` (``fedmlic.pooled_scores``): by which the
            next round's clients score the candidates; all 0 where they add the sums of regressions.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_labels: int,
        *,
        width: int,
        texts: TextTable | None,
        search: LocalSearch | None,
        layer_norm: bool,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.texts, self.search, self.layer_norm = backbone, texts, search, layer_norm
        features = [backbone.num_features, *([texts.width] if texts is not None else [])]
        self.projections = nn.ModuleList(nn.Linear(each, width) for each in features if width)
        self.head = nn.Linear(width or sum(features), num_labels)
        if search is not None:
            place, probes = state_of(search)
            self.place, self.probes = nn.Parameter(place), nn.Parameter(probes)
            if pooled:
                shape = HALVES, CANDIDATES, num_labels, backbone.num_features + 1
                self.regressions = nn.Parameter(torch.zeros(shape))
            self.kept = KeptFeatures(of_any_block(backbone))

    def modalities(self, images: Tensor) -> list[Tensor]:
        """``[batch, features]`` of the image and, if there are texts, of its text."""
        if self.search is None:
            found = [self.backbone(images).mean(dim=(2, 3))]
        else:
            block, timestep = (int(each) for each in self.place[:2].round().tolist())
            found = [self.kept.at(images, [block], timestep)[:, 0]]
        if self.texts is not None:
            found.append(self.texts(images))
        return [F.layer_norm(each, each.shape[1:]) if self.layer_norm else each for each in found]

    def features(self, images: Tensor) -> Tensor:
        """``[batch, features]``: what the head reads."""
        found = self.modalities(images)
        if not self.projections:
            return torch.cat(found, dim=1)
        projected = [projection(each) for projection, each in zip(self.projections, found, strict=True)]
        return torch.stack(projected).sum(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 ``[batch, labels]``."""
        logits: Tensor = self.head(self.features(images))
        return logits.float()


def state_of(search: LocalSearch) -> tuple[Tensor, Tensor]:
    """A search as the two tensors that the server sends (``DiffFeatNetwork.place``, ``probes``)."""
    probes = torch.full((search.budget, 3), -1.0)
    for row, (place, score) in enumerate(search.scores.items()):
        probes[row] = torch.tensor([*place, score])
    return torch.tensor([*search.place, *search.step, float(search.ended)], dtype=torch.float32), probes


def search_of(begin: LocalSearch, place: Tensor, probes: Tensor) -> LocalSearch:
    """The search that two tensors stand for.

    Args:
        begin: the search as it began, for what does not change.
        place: float32 ``[5]``.
        probes: float32 ``[budget, 3]``.
    """
    at, steps = place.detach().cpu(), probes.detach().cpu()
    block, timestep, step, other, ended = (int(each) for each in at.round().tolist())
    scores = {(int(b), int(t)): float(score) for b, t, score in steps.tolist() if b >= 0}
    return replace(begin, place=(block, timestep), step=(step, other), scores=scores, ended=bool(ended))


@dataclass(frozen=True)
class FederatedSearch:
    """How clients and server search for a block and a timestep.

    Attributes:
        begin: the search as it begins.
        alpha: penalty of the clients' ridge regressions.
        images: most images that a client looks at.
        pooled: the solved head whose kind of sums the regressions of all clients are solved from; None: each client
            scores by regressions of its own.
    """

    begin: LocalSearch
    alpha: float
    images: int
    pooled: SolvedHead | None = None

    def zeros(self, network: nn.Module, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Solution.sums``; of those of both rounds of a step, each round's clients add to their own.

        Raises:
            InputError: the second moments of all candidates would be too many numbers.
        """
        own = cast("DiffFeatNetwork", network)
        found = _no_scores(own.head.out_features)
        if self.pooled is not None:
            size, one = (own.head.out_features, own.backbone.num_features), self.pooled.is_shared(shared)
            refuse_too_many(*size, shared=one, times=HALVES * CANDIDATES)
            found |= fit_zeros(*size, CANDIDATES, shared=one)
        return found

    def train(self, resident: Resident, shard: Shard, local: Local) -> Trained:
        """Score this round's candidates on the client's own known labels, or add up for regressions; nothing trains."""
        network = cast("DiffFeatNetwork", resident.network).eval()
        wanted = search_of(self.begin, network.place, network.probes).wanted()
        chosen = np.unique(np.linspace(0, shard.num_images - 1, min(self.images, shard.num_images)).round().astype(int))
        told = Trained(0.0, 0, {"probes": float(len(wanted)), "images-seen": float(len(chosen) * bool(wanted))})
        if not wanted:
            return told
        images = to_float(held_images([shard], local.device)(chosen), local.device, resident.memory_format)
        features: dict[Place, Tensor] = {}
        for timestep in sorted({timestep for _, timestep in wanted}):
            blocks = [block for block, at in wanted if at == timestep]
            batches = (images[at : at + BATCH] for at in range(0, len(images), BATCH))
            found = torch.cat([network.kept.at(batch, blocks, timestep) for batch in batches]).double().cpu()
            features |= {(block, timestep): found[:, number] for number, block in enumerate(blocks)}
        stacked, labels = torch.stack([features[place] for place in wanted], dim=1), shard.labels[chosen]
        if self.pooled is not None and not bool(network.regressions.any()):
            one = self.pooled.is_shared(local.shared)
            sums = fit_sums(stacked, torch.from_numpy(labels), CANDIDATES, shared=one)
        else:
            sums = self._scores(network, stacked.numpy(), labels)
        local.solution_sums.update(sums)
        return told

    def _scores(
        self, network: DiffFeatNetwork, features: NDArray[np.float64], labels: NDArray[np.int8]
    ) -> dict[str, Tensor]:
        """Sums of scores of candidates, of features ``[images, candidates, features]``."""
        sums = _no_scores(labels.shape[1])
        for column in range(features.shape[1]):
            if self.pooled is None:
                found = cross_scores(features[:, column], labels, self.alpha)
            else:
                rows = network.regressions[:, column].detach().double().cpu().numpy()
                found = judged(features[:, column], labels, rows)
            sums[PRECISION][:, column] = torch.from_numpy(found.precision)
            sums[POSITIVES][:, column] = torch.from_numpy(found.positives)
        return sums

    def solve(self, network: nn.Module, sums: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Solution.solve``: the search, stepped by the scores of the round's clients together.

        A round in which no label of any client counts changes nothing: the same candidates are asked for again.
        Where scores are pooled, the first of a step's two rounds gives regressions and the second ends with none, so
        that the next one adds up for new ones, of the same candidates if none could be scored.
        """
        del network
        search = search_of(self.begin, before["place"], before["probes"])
        if self.pooled is not None and not bool(before["regressions"].any()):
            return {} if search.ended else {"regressions": regressions_of(sums, self.alpha)}
        rest = {} if self.pooled is None else {"regressions": torch.zeros_like(before["regressions"])}
        positives = sums[POSITIVES].double()
        means = sums[PRECISION] / positives.clamp(min=1)
        judged = positives > 0
        scores: dict[Place, float] = {}
        for column, place in enumerate(search.wanted()):
            if bool(judged[:, column].any()):
                # Through float32, in which scores are kept: a round of the same clients gives the same number again.
                scores[place] = float(means[judged[:, column], column].mean().float())
        at, probes = state_of(search.scored(scores) if search.place in scores else search)
        return {"place": at, "probes": probes, **rest}


def _no_scores(num_labels: int) -> dict[str, Tensor]:
    shape = num_labels, CANDIDATES
    return {PRECISION: torch.zeros(shape, dtype=torch.float64), POSITIVES: torch.zeros(shape, dtype=torch.int64)}


def diff_feat(
    *,
    search_rounds: Annotated[int, Field(ge=0)] = 6,
    start_block: Annotated[int, Field(ge=0)] = 12,
    start_timestep: Annotated[int, Field(ge=0)] = 100,
    step_block: Annotated[int, Field(ge=1)] = 4,
    step_timestep: Annotated[int, Field(ge=1)] = 50,
    least_step: Annotated[int, Field(ge=1)] = 10,
    budget: Annotated[int, Field(ge=1)] = 24,
    search_images: Annotated[int, Field(ge=2)] = 256,
    score: Literal["client", "pooled"] = "client",
    head: Literal["solved", "trained"] = "solved",
    alpha: Annotated[float, Field(gt=0)] = 1.0,
    gram: Gram = "auto",
    width: Annotated[int, Field(ge=0)] = 0,
    layer_norm: bool = False,
    texts: str = "",
) -> Method:
    """A linear classifier on diffusion features whose block and timestep are searched for (Diff-Feat).

    Args:
        search_rounds: rounds of the search, in which nothing trains; 0: the model's own block and timestep. A search
            needs a model such as ``dit(depth=...)`` and ``allow-statistics``.
        start_block: where the search begins, at most the model's last block.
        start_timestep: likewise.
        step_block: steps between neighbours at first; they are halved down to 1.
        step_timestep: likewise, down to ``least_step``.
        least_step: smallest step of timesteps.
        budget: most candidates that are scored.
        search_images: most images that a client looks at in the search.
        score: what ranks a candidate's images: ``client``, ridge regressions of each client alone, or ``pooled``, of
            all clients of a round; a step of the search then takes two rounds and ``search_rounds`` is even.
        head: ``solved`` in one round from exact sums (needs ``allow-statistics``), or ``trained`` by rounds.
        alpha: penalty of ridge regressions on features divided by their standard deviation: the solved head's, and
            those by which candidates are scored.
        gram: second moments that the solved head and pooled scores add up (``fedmlic.solved_head``).
        width: features of the joint space to which a trained head projects image and text; 0: no projection.
        layer_norm: shift and scale every feature vector to mean 0 and variance 1.
        texts: file of text vectors of images (``fedmlic.diffusion.write_texts``); empty: images alone.

    Raises:
        InputError: an option is given that has no effect beside the others, ``search_rounds`` is odd with pooled
            scores, or ``texts`` is no such file.
    """
    _check(search_rounds, score, head, width)
    of_search = {
        "start_block": start_block,
        "start_timestep": start_timestep,
        "step_block": step_block,
        "step_timestep": step_timestep,
        "least_step": least_step,
        "budget": budget,
        "search_images": search_images,
        "score": score,
    }
    _refuse_unused(search_rounds, head, of_search, gram=gram, alpha=alpha)
    begin = LocalSearch(
        (0, 0), (start_block, start_timestep), (step_block, step_timestep), (1, least_step), budget
    )  # on a grid that the model decides
    table = TextTable.read(texts) if texts else None
    solved = SolvedHead(read, alpha, gram=gram)
    pooled = solved if score == "pooled" else None
    build = partial(
        _build,
        begin=begin if search_rounds else None,
        width=width,
        table=table,
        layer_norm=layer_norm,
        pooled=pooled is not None,
    )
    objective = Objective(_loss, needs_annotations=True)
    last = solved.phase(objective) if head == "solved" else Phase(trainer(objective), 0, trained, objective)
    method = Method(
        build,
        trainer(objective),
        predict,
        lambda _: ("head.weight", "head.bias"),
        objective=objective,
        statistics=solved.counts if head == "solved" or pooled is not None else None,
        remembers=head == "solved",
        needs_pixels=bool(search_rounds or texts),
        freezes=True,
    )
    if not search_rounds:
        return method if head == "trained" else method._replace(phases=(last,))
    first = _search(search_rounds, search_images, alpha, pooled)
    refuses = needs_rounds_after("search_rounds", search_rounds, "its head comes")
    return method._replace(phases=(first, last), refuses=refuses)


def _search(rounds: int, images: int, alpha: float, pooled: SolvedHead | None) -> Phase:
    """The stage in which clients score candidates and the server steps."""
    steps = partial(_zeros, alpha=alpha, pooled=pooled), partial(_stepped, alpha=alpha, pooled=pooled)
    score = partial(_searched, alpha=alpha, images=images, pooled=pooled)
    return Phase(score, rounds, none, solution=Solution(*steps, metrics=found))


def _check(search_rounds: int, score: str, head: str, width: int) -> None:
    """Refuse options that contradict each other.

    Raises:
        InputError: a solved head with a projection, or an odd number of rounds with pooled scores.
    """
    if head == "solved" and width:
        msg = f"Expected width=0 with head='solved', which needs no projection, got width={width}. Use head='trained'."
        raise InputError(msg)
    if score == "pooled" and search_rounds % 2:
        msg = (
            f"Expected search_rounds to be even with score='pooled', whose steps take two rounds, got {search_rounds}. "
            f"Use search_rounds={search_rounds + 1}."
        )
        raise InputError(msg)


def _refuse_unused(search_rounds: int, head: str, of_search: Mapping[str, object], *, gram: str, alpha: float) -> None:
    """Refuse options that would have no effect.

    Raises:
        InputError: one is not what it is by default.
    """
    unused: dict[str, tuple[Mapping[str, object], str]] = {}
    if not search_rounds:
        unused["search_rounds=0"] = of_search, "Name the place in the model, dit(block=..., timestep=...), or search."
    if head == "trained":
        of_head: dict[str, object] = {} if of_search["score"] == "pooled" else {"gram": gram}
        of_head |= {} if search_rounds else {"alpha": alpha}
        unused["head='trained'"] = of_head, "Use head='solved'."
    parameters = inspect.signature(diff_feat).parameters
    for where, (options, what_to_do) in unused.items():
        given = [f"{name}={value!r}" for name, value in options.items() if value != parameters[name].default]
        if given:
            names = " and ".join(each.partition("=")[0] for each in given)
            msg = f"Expected no {names} with {where}, which makes no use of it, got {', '.join(given)}. {what_to_do}"
            raise InputError(msg)


def _of(network: nn.Module, alpha: float, pooled: SolvedHead | None, images: int = 0) -> FederatedSearch:
    begin = cast("DiffFeatNetwork", network).search
    if begin is None:
        msg = "Expected a network with a search, got one without. Build it with search_rounds above 0."
        raise TypeError(msg)
    return FederatedSearch(begin, alpha, images, pooled)


def _searched(
    resident: Resident, shard: Shard, local: Local, *, alpha: float, images: int, pooled: SolvedHead | None
) -> Trained:
    return _of(resident.network, alpha, pooled, images).train(resident, shard, local)


def _zeros(
    network: nn.Module, shared: Mapping[str, Tensor], *, alpha: float, pooled: SolvedHead | None
) -> dict[str, Tensor]:
    return _of(network, alpha, pooled).zeros(network, shared)


def _stepped(
    network: nn.Module,
    sums: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    *,
    alpha: float,
    pooled: SolvedHead | None,
) -> dict[str, Tensor]:
    return _of(network, alpha, pooled).solve(network, sums, before)


def _build(
    task: Task,
    *,
    begin: LocalSearch | None,
    width: int,
    table: TextTable | None,
    layer_norm: bool,
    pooled: bool,
) -> nn.Module:
    backbone = task.model.build(task.image_shape[2])
    freeze(backbone, {name for name, _ in backbone.named_parameters()})
    search = None
    if begin is not None:
        blocks, timesteps = of_any_block(backbone).num_blocks, of_any_block(backbone).num_timesteps
        place = min(begin.place[0], blocks - 1), min(begin.place[1], timesteps - 1)
        search = replace(begin, size=(blocks, timesteps), place=place)
    return DiffFeatNetwork(
        backbone, task.num_labels, width=width, texts=table, search=search, layer_norm=layer_norm, pooled=pooled
    )


def found(model: Mapping[str, Tensor]) -> dict[str, float]:
    """Where the search is, for the record: block, timestep, the best score, candidates, and whether it is over."""
    place, probes = model["place"], model["probes"]
    block, timestep, _, _, ended = place.tolist()
    return {
        "search/block": block,
        "search/timestep": timestep,
        "search/score": float(probes[:, 2].max()),
        "search/candidates": float((probes[:, 0] >= 0).sum()),
        "search/ended": ended,
    }


def read(network: nn.Module, images: Tensor) -> Tensor:
    """What the head reads, ``[batch, features]``."""
    return cast("DiffFeatNetwork", network).features(images)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Probabilities float32 ``[batch, labels]``."""
    return torch.sigmoid(network(images))


def trained(network: nn.Module) -> Sequence[str]:
    """Names of the tensors of head and projections."""
    return [name for name, _ in network.named_parameters() if name.startswith(("head.", "projections."))]


def _loss(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return mean_binary_cross_entropy(network(images), labels)

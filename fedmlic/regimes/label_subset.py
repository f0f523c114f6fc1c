"""Label subset: each client annotates only some of the labels.

Which ones:

- ``rule="random"``: drawn once per client, uniformly without replacement, from a
  stream of its own, so they depend on neither the other clients nor its images.
- ``rule="round_robin"``: with m labels per client, client k gets labels k*m to
  k*m + m - 1, counted modulo the number of labels. For m = 1 that is label k at
  client k, as the released code of FedMLP does (arXiv 2406.18995).
- ``rule="dirichlet"``: labels differ in popularity. One vector of popularities is
  drawn from Dirichlet(alpha) for the whole federation; each client then draws its
  labels without replacement in proportion to it. A small alpha leaves some labels
  to hardly anybody. (A Dirichlet draw per client would change nothing: subsets
  drawn by independent symmetric weights are uniform again.)
- ``labels=[[...], ...]``: lists of names; client k takes list k modulo their number.

What a client does not annotate is either unknown, or silently absent: present
entries turn into known absences, as in FedMLP, where every client has labels
that it never looked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedmlic.annotation.draws import Whole, log_dirichlet, race, whole
from fedmlic.annotation.label_columns import columns_of, names_of
from fedmlic.errors import InputError
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN, known
from fedmlic.regime import Assignment, Regime

if TYPE_CHECKING:
    from numpy.typing import NDArray


WHAT = "labels of label_subset"


class _Choice(NamedTuple):
    """How a client comes by its labels."""

    labels_per_client: int | tuple[int, int]
    rule: str
    alpha: float
    lists: tuple[tuple[str, ...], ...] | None


def _count(assignment: Assignment, labels_per_client: int | tuple[int, int]) -> int:
    num_labels = assignment.labels.shape[1]
    most = labels_per_client[1] if isinstance(labels_per_client, tuple) else labels_per_client
    if most > num_labels:
        msg = (
            f"Expected labels_per_client of label_subset to be at most the {num_labels} labels of the data set, "
            f"got {most}. Lower it, or give regime='complete()' to keep every label."
        )
        raise InputError(msg)
    return whole(labels_per_client, assignment, "labels_per_client")


def _popular(assignment: Assignment, count: int, alpha: float) -> NDArray[np.int64]:
    """int64 ``[count]``: labels drawn without replacement by the federation's popularities."""
    num_labels = assignment.labels.shape[1]
    popularity = log_dirichlet(np.full(num_labels, alpha), assignment.shared_rng("popularity"))
    uniforms = np.asarray(assignment.rng("labels").random(num_labels))
    return np.argsort(-race(uniforms, popularity))[:count]


def _columns(assignment: Assignment, choice: _Choice) -> NDArray[np.int64]:
    """int64: the labels this client annotates."""
    num_labels = assignment.labels.shape[1]
    if choice.lists is not None:
        chosen = choice.lists[assignment.client % len(choice.lists)]
        return columns_of(chosen, assignment.label_names, WHAT)
    count = _count(assignment, choice.labels_per_client)
    if choice.rule == "round_robin":
        return np.remainder(assignment.client * count + np.arange(count, dtype=np.int64), num_labels)
    if choice.rule == "dirichlet":
        return _popular(assignment, count, choice.alpha)
    return assignment.rng("labels").choice(num_labels, count, replace=False)


def _annotated(assignment: Assignment, choice: _Choice) -> NDArray[np.bool_]:
    """Bool ``[labels]``: the labels this client annotates."""
    annotated = np.zeros(assignment.labels.shape[1], dtype=np.bool_)
    annotated[_columns(assignment, choice)] = True
    return annotated


def _check(choice: _Choice) -> None:
    if choice.lists is not None and choice.rule != "random":
        msg = f"Expected label_subset to be given labels or a rule, got labels and rule={choice.rule!r}. Leave one out."
        raise InputError(msg)
    if choice.rule == "round_robin" and isinstance(choice.labels_per_client, tuple):
        msg = (
            "Expected labels_per_client of label_subset to be one number for rule='round_robin', "
            f"got {list(choice.labels_per_client)}. Clients with different numbers cannot take turns."
        )
        raise InputError(msg)


def label_subset(
    *,
    labels_per_client: Whole = 3,
    missing: Literal["unknown", "absent"] = "unknown",
    rule: Literal["random", "round_robin", "dirichlet"] = "random",
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.3,
    labels: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)] | None = None,
) -> Regime:
    """Each client annotates its own few labels; the others are unknown or silently absent.

    Args:
        labels_per_client: how many labels each client annotates; or drawn by each client
            from ``[low, high]``, both ends included.
        missing: what the other labels say: ``"unknown"``, or ``"absent"`` for present
            entries written down as absent (adds wrong labels).
        rule: how a client comes by its labels: ``"random"``, ``"round_robin"`` or ``"dirichlet"``.
        alpha: concentration of the popularities of ``rule="dirichlet"``, above 0; 0.1 makes few
            labels very popular, 100 is close to ``"random"``.
        labels: lists of label names instead of a rule; client k takes list k modulo their
            number. ``labels_per_client`` is not used then.

    Raises:
        InputError: labels and a rule are both given, or a list has an empty name or one twice; at the
            first client, when the data set has fewer labels than that, or not the ones named.
    """
    lists = None if labels is None else tuple(names_of(names, WHAT) for names in labels)
    choice = _Choice(labels_per_client, rule, alpha, lists)
    _check(choice)

    def annotate(assignment: Assignment) -> NDArray[np.int8]:
        found = assignment.labels
        lost = known(found) if missing == "unknown" else found == PRESENT
        state = np.int8(UNKNOWN if missing == "unknown" else ABSENT)
        return np.where(lost & ~_annotated(assignment, choice), state, found)

    def looks(assignment: Assignment) -> NDArray[np.int64]:
        # Nobody looked for the labels that are silently absent.
        return np.asarray(_annotated(assignment, choice) | (assignment.labels == UNCERTAIN), dtype=np.int64)

    return Regime(annotate, adds_wrong=missing == "absent", looks=looks if missing == "absent" else None)

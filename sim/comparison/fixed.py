"""What a reference of a study has in place of its row's: settings that do not name it."""

from __future__ import annotations

UNTRAINED = "untrained"
"""The reference whose model never trains."""

TRAINING = frozenset(
    {"cohort", "cohort-size", "local-epochs", "local-steps", "batch-size", "min-replies", "precision", "augmentation"}
    | {"optimizer", "learning-rate", "schedule", "momentum", "weight-decay", "clip-norm"}
)
"""Settings that decide nothing of a model that never trains."""


def fixed_in(reference: str) -> frozenset[str]:
    """Settings that are the same in a kind of reference, whatever its row has.

    Args:
        reference: its name; empty for a row of the study itself.

    >>> sorted(fixed_in("central")), "learning-rate" in fixed_in("untrained")
    (['strategy'], True)
    """
    if not reference:
        return frozenset()
    return frozenset({"strategy"}) | (TRAINING | {"num-rounds"} if reference == UNTRAINED else frozenset())

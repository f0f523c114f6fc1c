"""Compare runs and studies; what comes out are pandas tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.api.results import Played, opened

if TYPE_CHECKING:
    import pandas as pd

    from sim.comparison.compare import Comparison
    from sim.comparison.statistics import Test
    from sim.outcome import Which


@dataclass(frozen=True)
class Compared:
    """A comparison over seeds. A notebook shows it as tables.

    Attributes:
        found: the values and statistics as ``fedmlic compare`` has them.
    """

    found: Comparison

    @property
    def rows(self) -> pd.DataFrame:
        """One line per row: ``mean`` and ``std`` over seeds, ``seeds``, ``reference``, chosen settings."""
        import pandas as pd

        lines = {
            group.label: {
                "mean": group.mean,
                "std": group.std,
                "seeds": len(group.values),
                "reference": group.reference,
                **group.chosen,
            }
            for group in self.found.groups
        }
        return pd.DataFrame.from_dict(lines, orient="index")

    @property
    def by_seed(self) -> pd.DataFrame:
        """The metric, a row per seed and a column per row of the comparison; NaN where a run is missing."""
        import pandas as pd

        columns = {group.label: pd.Series(dict(group.values), dtype="float64") for group in self.found.groups}
        return pd.DataFrame(columns).rename_axis("seed")

    @property
    def pairs(self) -> pd.DataFrame:
        """A line per pair: ``mean`` of first - second, ``low``, ``high`` (95 %), ``p``, ``p_holm``, ``improvement``."""
        import pandas as pd

        lines = [
            {"first": pair.first, "second": pair.second, **pair.found._asdict(), "p_holm": pair.p_holm}
            for pair in self.found.pairs
        ]
        return pd.DataFrame(lines)

    @property
    def notes(self) -> list[str]:
        """What a reader must know: seeds that are too few, runs that are missing, settings that were searched."""
        return list(self.found.notes)

    @property
    def best(self) -> str:
        """The row that is better than every other by its corrected p-value; empty if there is none."""
        return self.found.best()

    def to_markdown(self) -> str:
        """Both tables and the notes."""
        from sim.comparison.output import render

        return render(self.found, "markdown")

    def to_latex(self) -> str:
        """Both tables (booktabs), the notes as comments."""
        from sim.comparison.output import render

        return render(self.found, "latex")

    __str__ = to_markdown
    _repr_markdown_ = to_markdown


def compare(
    *things: Played | Iterable[Played],
    by: str | Sequence[str] = (),
    metric: str = "",
    which: Which = "last",
    test: Test = "permutation",
    baseline: str = "",
) -> Compared:
    """Compare runs over seeds: means, paired differences with intervals and tests, and whether the seeds suffice.

    Args:
        things: runs, studies, or folders of such; also in lists.
        by: settings in which rows differ, with underscores or dashes; a study's axes by default.
        metric: a name of ``docs/record.md``; test mAP by default.
        which: model of a run: ``last``, or ``best`` on validation data.
        test: ``permutation`` or ``wilcoxon``, paired over seeds.
        baseline: label of the row that all others are compared with; all pairs by default.

    Raises:
        InputError: nothing to compare, or runs that differ in more than is compared.
    """
    from sim.comparison.compare import compare as made

    keys = [by] if isinstance(by, str) else by
    found = made(
        [thing.path for thing in opened(things)],
        by=[key.replace("_", "-") for key in keys if key],
        metric=metric,
        model=which,
        test=test,
        baseline=baseline,
    )
    return Compared(found)

"""label_report: count the labels of all clients once, before the first round, and record it.

How many annotations and how many present labels there are, over all clients together, and if
wanted how often two labels are present together. It tells the server something of the clients'
labels, so ``allow-statistics`` must be set, and numbers with too few clients or images behind them
are withheld, all of a label's together.

Training is as without it, but where the method counts labels itself: what is withheld together is
withheld of all that a run counts. A method that counts presences alone (``db(counts="global")``) then
lacks those of a label that too few clients know to be absent.
"""

from __future__ import annotations

from fedmlic.counting import label_and_pair_counts, label_counts
from fedmlic.mod import Mod


def label_report(*, pairs: bool = False) -> Mod:
    """Label counts over all clients in the record.

    Args:
        pairs: also count how often two labels are present together: labels x labels numbers.
    """
    return Mod(statistics=label_and_pair_counts if pairs else label_counts)

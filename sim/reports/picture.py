"""A figure that notebooks show by themselves."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from sim.reports.figures import drawing


class Picture(Figure):
    """matplotlib's figure; outside pyplot, notebooks do not know how to show that."""

    def _repr_png_(self) -> bytes:
        """The picture as PNG, for the output of a notebook's cell."""
        data = io.BytesIO()
        with drawing():
            self.savefig(data, format="png", dpi=100)
        return data.getvalue()

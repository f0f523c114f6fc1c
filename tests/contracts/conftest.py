"""What the batteries need: annotators' files for regimes, and the one entry to try where ``FEDMLIC_ENTRY`` names it."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest

LABELS = ("person", "cat", "dog", "car", "bottle", "sofa")


PLUGIN = os.environ.get("FEDMLIC_ENTRY", "")
"""The dotted name of an entry outside the catalogues that is tried instead of theirs (``docs/extending.md``)."""


def pytest_collection_modifyitems(config, items):
    """Of a plug-in leave out what is not about it, and the project's own pages."""
    if not PLUGIN:
        return
    about = [
        item
        for item in items
        if PLUGIN in (item.callspec.params.values() if hasattr(item, "callspec") else ()) and "page" not in item.name
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in about])
    items[:] = about


@pytest.fixture(scope="session", autouse=True)
def annotators(tmp_path_factory):
    """HAPI's files about the images ``image 0`` to ``image 79`` of the battery, at ``$HAPI_DATA_DIR``."""
    root = tmp_path_factory.mktemp("hapi")
    rng = np.random.default_rng(5)
    examples = [f"image {number}" for number in range(80)]
    truth, google, microsoft = (
        {e: [name for name in LABELS if rng.random() < share] for e in examples} for share in (0.3, 0.2, 0.4)
    )
    for said in google.values():
        said[:] = [name for name in said if name != "person"]  # blind to it, as it nearly is
    answers = {("google_mic", "20-10-28"): google, ("microsoft_mic", "20-11-20"): microsoft}
    runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "hapi.py"))["tree"](root, "coco", truth, answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAPI_DATA_DIR", str(root))
        yield

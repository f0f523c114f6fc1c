"""A corpus that was built before, wherever its folder lies now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedmlic.corpus import load_corpus
from fedmlic.dataset import Dataset, Table


def corpus(*, path: Annotated[str, Field(min_length=1)]) -> Dataset:
    """A corpus folder built before (``fedmlic data import ... --out``), opened without copying a pixel.

    The data set it was built from is not needed any more. Name, version, identity and key are
    those of that data set, so a federation over this folder is the same one.

    Args:
        path: the folder that holds ``manifest.json``; ``~`` is your home.

    Raises:
        InputError: it is missing, incomplete or damaged.
    """
    found = load_corpus(Path(path).expanduser().absolute())
    manifest = found.manifest

    def table() -> Table:
        return Table(
            image_ids=found.image_ids,
            splits=[split for split, rows in found.splits.items() for _ in rows],
            labels=found.labels.take(np.arange(found.num_images)),
            owners=found.owners,
            objects=found.objects,
            owner_names=found.owner_names,
            report=manifest["report"],
            flags=found.flags,
        )

    return Dataset(
        name=found.name,
        version=manifest["version"],
        identity=manifest["identity"],
        label_names=found.label_names,
        image_shape=found.image_shape,
        table=table,
        image=lambda row: found.images.take(np.array([row]))[0],
        licence=manifest["licence"],
        images=found.images.take,
        label_ids=found.label_ids,
        parents=found.parents,
        built=found.path,
    )

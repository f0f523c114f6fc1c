"""No images here: every device trains on its own, and the server has none to evaluate on."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedmlic.dataset import NO_OWNER, Dataset, Table


def on_devices(
    *,
    image_size: Annotated[int, Field(ge=8, le=1024)] = 128,
    channels: Literal[1, 3] = 3,
) -> Dataset:
    """The server's side of a deployment whose images never leave their devices.

    The server needs to know only what its network is made for: the image size here, and the
    setting ``label-names``, which every device shares. Each SuperNode names its own images
    with ``data`` in ``--node-config``; they must be prepared in the same size. The server
    then evaluates nothing itself, and the run's metrics are those of the clients' held-out
    images. A server that has test images of its own uses ``folder`` instead, with a CSV
    that holds only ``val`` and ``test`` rows.

    Args:
        image_size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
    """
    shape = (image_size, image_size, channels)

    def table() -> Table:
        # A corpus holds at least one image; this one is black and nobody reads it.
        labels = np.empty((1, 0), dtype=np.int8)
        return Table(["nobody"], ["train"], labels, np.array([NO_OWNER], dtype=np.int64))

    return Dataset(
        name="on_devices",
        version="1",
        identity={"image_size": image_size, "channels": channels},
        label_names=(),
        image_shape=shape,
        table=table,
        image=lambda _: np.zeros(shape, dtype=np.uint8),
        licence="none",
    )

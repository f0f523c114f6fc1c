"""Where and how large each label is in each image, from the boxes of its instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Objects
    from fedmlic.regime import Assignment


def need_objects(desk: Assignment, who: str, instead: str) -> Objects:
    """The instances of these images.

    Raises:
        InputError: the data set has none, or does not say how large its images are.
    """
    if desk.objects is None or not all(desk.image_size):
        msg = f"Expected the data set to have boxes of its objects for {who}, got none. {instead}"
        raise InputError(msg)
    return desk.objects


def _places(desk: Assignment, objects: Objects) -> NDArray[np.int64]:
    """int64 ``[objects]``: the flat place of each instance's entry."""
    return np.asarray(objects.row * desk.labels.shape[1] + objects.label)


def sums(desk: Assignment, objects: Objects, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 ``[images, labels]``: one value per instance, added up over the instances of each entry."""
    added = np.bincount(_places(desk, objects), weights=values, minlength=desk.labels.size)
    return np.asarray(added.reshape(desk.labels.shape))


def smallest(desk: Assignment, objects: Objects, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 ``[images, labels]``: the smallest value among the instances of each entry; inf without one."""
    out = np.full(desk.labels.size, np.inf)
    np.minimum.at(out, _places(desk, objects), values)
    return out.reshape(desk.labels.shape)


def centre_distances(desk: Assignment, objects: Objects) -> NDArray[np.float64]:
    """float64 ``[objects]``: pixels from the centre of a box to the centre of its image."""
    box = objects.box.astype(np.float64)
    height, width = desk.image_size
    return np.hypot(box[:, 0] + box[:, 2] / 2 - width / 2, box[:, 1] + box[:, 3] / 2 - height / 2)

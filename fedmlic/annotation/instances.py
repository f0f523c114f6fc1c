"""Where and how large each label is in each image, from the boxes of its instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.dataset import Objects
    from fedmlic.regime import Assignment


def need_objects(assignment: Assignment, who: str, instead: str) -> Objects:
    """The instances of these images.

    Raises:
        InputError: the data set has none, or does not say how large its images are.
    """
    if assignment.objects is None or not all(assignment.image_size):
        msg = f"Expected the data set to have boxes of its objects for {who}, got none. {instead}"
        raise InputError(msg)
    return assignment.objects


def _places(assignment: Assignment, objects: Objects) -> NDArray[np.int64]:
    """int64 ``[objects]``: the flat place of each instance's entry."""
    return np.asarray(objects.row * assignment.labels.shape[1] + objects.label)


def sums(assignment: Assignment, objects: Objects, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 ``[images, labels]``: one value per instance, added up over the instances of each entry."""
    added = np.bincount(_places(assignment, objects), weights=values, minlength=assignment.labels.size)
    return np.asarray(added.reshape(assignment.labels.shape))


def smallest(assignment: Assignment, objects: Objects, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """float64 ``[images, labels]``: the smallest value among the instances of each entry; inf without one."""
    out = np.full(assignment.labels.size, np.inf)
    np.minimum.at(out, _places(assignment, objects), values)
    return out.reshape(assignment.labels.shape)


def centre_distances(assignment: Assignment, objects: Objects) -> NDArray[np.float64]:
    """float64 ``[objects]``: pixels from the centre of a box to the centre of its image."""
    box = objects.box.astype(np.float64)
    height, width = assignment.image_size
    return np.hypot(box[:, 0] + box[:, 2] / 2 - width / 2, box[:, 1] + box[:, 3] / 2 - height / 2)

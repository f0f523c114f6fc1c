"""One label under several names: choosing labels of a source by any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedmlic.errors import listing, nearest

ALIASES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL VOC's name of a label and COCO's."""


def canonical(name: str) -> str:
    """COCO's spelling of a name: spaces instead of underscores, and VOC's labels translated.

    >>> canonical("hot_dog"), canonical("tvmonitor")
    ('hot dog', 'tv')
    """
    spaced = " ".join(name.replace("_", " ").split()).lower()
    return ALIASES.get(spaced, spaced)


def choose_labels(wanted: Sequence[str] | None, known: Sequence[str], dataset: str) -> list[int]:
    """Places in ``known`` of the wanted labels, or of all.

    A name is looked up as it is written, then by ``canonical``, so ``hot_dog`` finds
    ``hot dog`` and ``tvmonitor`` finds ``tv``.

    Args:
        wanted: names in the order of the columns to be; None for all.
        known: the source's own names.
        dataset: its name, for the message.

    Raises:
        InputError: names that the source does not know or that mean one label twice, all at once.

    >>> choose_labels(["tvmonitor", "hot_dog"], ["hot dog", "tv"], "coco2017")
    [1, 0]
    """
    if wanted is None:
        return list(range(len(known)))
    exact = {name: place for place, name in enumerate(known)}
    loose = {canonical(name): place for place, name in enumerate(known)}
    places = [exact.get(name, loose.get(canonical(name), -1)) for name in wanted]
    times = Counter(places)
    problems = [
        f"{name!r}: {nearest(name, known)}" if place < 0 else f"{name!r}: chosen {times[place]} times"
        for name, place in zip(wanted, places, strict=True)
        if place < 0 or times[place] > 1
    ]
    if not wanted:
        problems.append("no names at all")
    if problems:
        expected = f"Expected label_names of data set {dataset} to name different labels of it"
        raise listing(expected, problems)
    return places

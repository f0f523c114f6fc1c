"""Names of labels: one form for each, and what in a list of names is almost certainly a mistake.

One text can be written with composed or decomposed letters (Unicode's forms NFC and NFD). That is
the same name, so every data set that reads names written by people passes them through
``composed``. Names that differ only in case, spaces, hyphens or width (``look_alike``), one name
that is really several labels (``joined_names``) and names that a program wrote for an empty cell
(``EMPTY_CELLS``) are refused together by ``check_names``: taken as they are, each would be absent
wherever the other one stands. Names that the user lists are settled, and never refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from fedmlic.errors import listing, nearest

SEPARATORS = (",", ";", "|", "\t", "\n")
"""What people put between the labels of one cell."""

EMPTY_CELLS = {"nan", "null", "none", "n/a", "na", "#n/a", "<na>", "nat", "-", "?"}
"""How programs and people write that a cell is empty."""

_DASH = r"(?<=[^\W\d_])[-\u2010-\u2015](?=[^\W\d_])"

ALIASES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL VOC's name of a label and COCO's."""


def composed(name: str) -> str:
    """The name with composed letters (Unicode NFC) and without space around it.

    >>> composed("cafe\u0301 ") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name).strip()


def look_alike(name: str) -> str:
    """What names have in common that differ only in case, spaces, underscores, hyphens or width.

    Spaces between digits and hyphens beside digits count: ``1 1`` is not ``11``, ``T-1`` not ``T1``.

    >>> look_alike("X-ray Left") == look_alike("x_ray\u00a0left") == look_alike("\uff38RayLeft")
    True
    >>> look_alike("level -1") == look_alike("level 1")
    False
    """
    folded = unicodedata.normalize("NFKC", name).lower()
    visible = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    spaced = re.sub(rf"[\s_]+|{_DASH}", " ", visible).strip()
    return re.sub(r"(?<!\d) | (?!\d)", "", spaced)


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that look alike, in alphabetical order.

    >>> similar_names(["Kreis", "Quadrat", "kreis"])
    [['Kreis', 'kreis']]
    """
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[look_alike(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def joined_names(names: Collection[str], *, divided: bool) -> dict[str, str]:
    """Names that are several labels by all appearances, and the separator between them.

    Such a name holds a usual separator, and one of its parts is a label too, or no cell of the
    table was divided at all.

    Args:
        names: all labels that were read.
        divided: whether any cell or list held several labels.

    >>> joined_names(["a", "a, b", "coat, jacket"], divided=True)
    {'a, b': ','}
    """
    known = {look_alike(name) for name in names}
    found = {}
    for name in sorted(names):
        for separator in SEPARATORS:
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and all(parts) and (not divided or any(look_alike(part) in known for part in parts)):
                found[name] = separator
                break
    return found


def check_names(names: Collection[str], where: str, *, divided: bool = True, separable: str = "") -> None:
    """Refuse names that are almost certainly mistakes, all at once.

    Call it with the names that were read, not with those that a user listed as ``label_names``.

    Args:
        names: as ``composed`` gives them.
        where: the data set or its file, for the message.
        divided: whether any cell or list held several labels.
        separable: the option that divides cells, such as ``separator``; blank if there is none.

    Raises:
        InputError: some look alike, are several labels in one, are blank or stand for an empty cell.
    """
    problems = [
        f"{', '.join(map(repr, group))} differ only in case, spaces, hyphens or width: write one label one way"
        for group in similar_names(names)
    ]
    for name, separator in joined_names(names, divided=divided).items():
        advice = f"; {separable}={separator!r} divides it" if separable else ""
        problems.append(f"{name!r} looks like several labels with {separator!r} between them{advice}")
    problems += [
        f"{name!r} is how an empty cell is written: leave the cell blank" for name in sorted(names) if _is_empty(name)
    ]
    problems += [f"{name!r} is blank: leave it out" for name in sorted(names) if _is_blank(name)]
    problems += [f"{name!r} holds a control character" for name in sorted(names) if _has_control(name)]
    if problems:
        expected = f"Expected labels of {where} to be clear (label_names=[...] with all labels keeps them as they are)"
        raise listing(expected, problems)


def _has_control(name: str) -> bool:
    return any(unicodedata.category(letter) == "Cc" and letter not in SEPARATORS for letter in name)


def _is_blank(name: str) -> bool:
    """Whether nothing of the name can be seen."""
    return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in name)


def _is_empty(name: str) -> bool:
    return name.lower() in EMPTY_CELLS


def plain_name(name: str) -> str:
    """COCO's spelling of a name: spaces instead of underscores, and VOC's labels translated.

    >>> plain_name("hot_dog"), plain_name("tvmonitor")
    ('hot dog', 'tv')
    """
    spaced = " ".join(composed(name).replace("_", " ").split()).lower()
    return ALIASES.get(spaced, spaced)


def choose_labels(wanted: Sequence[str] | None, known: Sequence[str], dataset: str) -> list[int]:
    """Places in ``known`` of the wanted labels, or of all.

    A name is looked up as it is written, then by ``plain_name``, so ``hot_dog`` finds
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
    exact = {composed(name): place for place, name in enumerate(known)}
    loose = {plain_name(name): place for place, name in enumerate(known)}
    places = [exact.get(composed(name), loose.get(plain_name(name), -1)) for name in wanted]
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

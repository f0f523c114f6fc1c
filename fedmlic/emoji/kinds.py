"""Labels of emoji scenes: kinds of emoji, made from the subcategories of Unicode's CLDR.

A kind is one subcategory, or a few that show the same, without the emoji that do not show what the
name says (a feather among birds, a bus stop among vehicles). Its context is the CLDR group it belongs
to, so kinds of one group appear together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedmlic.formats.emoji_data import Emoji
from fedmlic.seeds import text_keys

NUM_FOLDS = 5
"""Parts into which the emoji of a kind are dealt: one for testing, one for validation, the others for training."""


class Kind(NamedTuple):
    """One label.

    Attributes:
        name: the label's name.
        group: CLDR group, the context that favours it.
        subcategories: CLDR subcategories whose emoji show it.
        left_out: codes of emoji of these that do not.
    """

    name: str
    group: str
    subcategories: tuple[str, ...]
    left_out: tuple[str, ...] = ()


ANIMALS, FOOD, ACTIVITIES, OBJECTS = "Animals & Nature", "Food & Drink", "Activities", "Objects"
PEOPLE, SMILEYS, TRAVEL = "People & Body", "Smileys & Emotion", "Travel & Places"

VEHICLE_PARTS = (
    *("1f689", "1f68f", "1f6e3", "1f6e4", "1f6e2", "26fd", "1f6de", "1f6a8", "1f6a5", "1f6a6", "1f6d1", "1f6a7"),
    *("1f9bd", "1f9bc", "1f6fc"),
)
"""Station, bus stop, roads, oil drum, fuel pump, wheel, lights and signs; wheelchairs and the roller skate."""

OTHER_PLACES = ("26f2", "26fa", "2668", "1f3a0", "1f6dd", "1f3a1", "1f3a2", "1f488", "1f3aa")
"""Places that show one thing and no view: fountain, tent, hot springs, rides, barber pole, circus tent."""

HANDS = ("hand-fingers-closed", "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hands")

KINDS = (
    Kind("bird", ANIMALS, ("animal-bird",), ("1fab6", "1fabd")),
    Kind("fruit", FOOD, ("food-fruit",)),
    Kind("clothing", OBJECTS, ("clothing",)),
    Kind("building", TRAVEL, ("place-building", "place-religious"), ("1f3d7", "1f9f1", "1faa8", "1fab5")),
    Kind("sports equipment", ACTIVITIES, ("sport",)),
    Kind("person", PEOPLE, ("person",)),
    Kind("smiling face", SMILEYS, ("face-smiling",)),
    Kind("mammal", ANIMALS, ("animal-mammal",), ("1f43d", "1f43e")),
    Kind("cooked dish", FOOD, ("food-prepared",), ("1f9c2", "1f9c8")),
    Kind("tool", OBJECTS, ("tool",)),
    Kind("ground vehicle", TRAVEL, ("transport-ground",), VEHICLE_PARTS),
    Kind("celebration", ACTIVITIES, ("event",)),
    Kind("worker", PEOPLE, ("person-role",)),
    Kind("worried face", SMILEYS, ("face-concerned",)),
    Kind("flower", ANIMALS, ("plant-flower",)),
    Kind("drink", FOOD, ("drink",), ("1f9ca",)),
    Kind("household item", OBJECTS, ("household",)),
    Kind("aircraft", TRAVEL, ("transport-air",), ("1f4ba",)),
    Kind("game", ACTIVITIES, ("game",), ("2660", "2663", "2665", "2666")),
    Kind("athlete", PEOPLE, ("person-sport",)),
    Kind("cat face", SMILEYS, ("cat-face",)),
    Kind("bug", ANIMALS, ("animal-bug",), ("1f578",)),
    Kind("vegetable", FOOD, ("food-vegetable",)),
    Kind("book or paper", OBJECTS, ("book-paper",)),
    Kind("clock", TRAVEL, ("time",), ("231b", "23f3")),
    Kind("hand", PEOPLE, HANDS),
    Kind("plant", ANIMALS, ("plant-other",), ("1fab9", "1faba")),
    Kind("sweet dish", FOOD, ("food-sweet",)),
    Kind("musical instrument", OBJECTS, ("musical-instrument",)),
    Kind("sky or weather", TRAVEL, ("sky & weather",), ("1f321",)),
    Kind("sea animal", ANIMALS, ("animal-marine",)),
    Kind("Asian dish", FOOD, ("food-asian",)),
    # Up to here the default.
    Kind("heart", SMILEYS, ("heart",), ("1f48c",)),
    Kind("office item", OBJECTS, ("office",)),
    Kind("body part", PEOPLE, ("body-parts",)),
    Kind("landscape", TRAVEL, ("place-geographic", "place-other"), OTHER_PLACES),
    Kind("neutral face", SMILEYS, ("face-neutral-skeptical",)),
    Kind("computer equipment", OBJECTS, ("computer",)),
    Kind("fantasy figure", PEOPLE, ("person-fantasy",)),
    Kind("ill face", SMILEYS, ("face-unwell",)),
    Kind("camera or light", OBJECTS, ("light & video",)),
    Kind("mail", OBJECTS, ("mail",)),
)
"""All labels; a data set with ``num_labels`` has the first so many."""

NOT_DRAWN = ("Symbols", "Flags", "Component")
"""CLDR groups that are never drawn: signs, flags, skin tones."""

FAMILIES = ("family", "person-symbol")
"""Subcategories that are never drawn: they repeat other people in all combinations."""

VARIANTS = frozenset({"200d", "2640", "2642", "1f468", "1f469", "1f9d1", "27a1"})
"""Parts of a code that make a variant of another emoji: woman, man, adult, and facing right."""


class Cast(NamedTuple):
    """Emoji that may be drawn, in the order of their codes.

    Attributes:
        codes: of each, see ``fedmlic.formats.emoji_data``.
        kind: int64 ``[emoji]``, its label, or the number of labels for an emoji that shows none.
        fold: int64 ``[emoji]``, which part of its kind it is in.
    """

    codes: list[str]
    kind: np.ndarray[tuple[int], np.dtype[np.int64]]
    fold: np.ndarray[tuple[int], np.dtype[np.int64]]


def groups(num_labels: int) -> tuple[str, ...]:
    """CLDR groups of the first ``num_labels`` kinds, in order of appearance: the contexts."""
    return tuple(dict.fromkeys(kind.group for kind in KINDS[:num_labels]))


def base(code: str) -> str:
    """What the variants of an emoji by gender or direction share that Unicode joins from parts.

    Variants with codes of their own share nothing: man, woman and adult; the older ones; each of these and
    the same with red, curly, white, blond or no hair or a beard (for one kind of hair, man, woman and adult do
    share it). These are the 28 emoji of the label person, which so has look-alikes in several folds; of the
    workers prince, princess and person with crown, and a pregnant woman, man and person are such.

    Nor do emoji share anything that only look alike: 24 of the 29 of the label clock are one face with other
    hands and lie in all folds, and there are pairs such as frowning face and slightly frowning face, neutral face
    and expressionless face, purple heart and grey heart, new moon symbol and new moon with face. All this
    stays, since what is measured on the data set depends on it.

    >>> base("1f469-200d-1f692"), base("1f6b4-200d-2640"), base("1f469"), base("1f469-200d-1f9b0")
    ('1f692', '1f6b4', '1f469', '1f9b0')
    """
    return "-".join(part for part in code.split("-") if part not in VARIANTS) or code


def cast(emoji: list[Emoji], num_labels: int) -> Cast:
    """The emoji that show the first ``num_labels`` kinds or, as things without a label, any other.

    Folds are the same for every seed: emoji of one ``base`` lie in one, and those of a kind are dealt in
    the order of a hash of their codes.
    """
    by_subcategory = {sub: number for number, kind in enumerate(KINDS) for sub in kind.subcategories}
    drawn = [e for e in emoji if e.category not in NOT_DRAWN and e.subcategory not in FAMILIES]
    drawn.sort(key=lambda e: e.code)
    kinds = []
    for one in drawn:
        kind = by_subcategory.get(one.subcategory, num_labels)
        left_out = kind < len(KINDS) and one.code in KINDS[kind].left_out
        kinds.append(num_labels if left_out else min(kind, num_labels))
    codes = [one.code for one in drawn]
    return Cast(codes, np.array(kinds, dtype=np.int64), _folds(codes, kinds))


def _folds(codes: list[str], kinds: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    bases = [base(code) for code in codes]
    order = dict(zip(bases, text_keys(bases).tolist(), strict=True))
    fold: dict[tuple[int, str], int] = {}
    for kind in set(kinds):
        own = {name for name, its in zip(bases, kinds, strict=True) if its == kind}
        for place, name in enumerate(sorted(own, key=lambda name: (order[name], name))):
            fold[kind, name] = place % NUM_FOLDS
    return np.array([fold[kind, name] for kind, name in zip(kinds, bases, strict=True)], dtype=np.int64)

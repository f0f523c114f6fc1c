"""``emoji.json`` of emoji-data: one object per emoji with its code points, CLDR group and subcategory.

Fields read, of many: ``unified`` (code points in hexadecimal with ``-`` between them), ``name``, ``category``,
``subcategory``. Format: https://github.com/iamcal/emoji-data (MIT).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from fedmlic.errors import listing
from fedmlic.formats.reading import read_json

CODE = re.compile(r"[0-9a-f]{1,6}(-[0-9a-f]{1,6})*", re.ASCII)


class Emoji(NamedTuple):
    """One emoji.

    Attributes:
        code: its code points, see ``code_of``.
        name: Unicode's name, lower case.
        category: CLDR group.
        subcategory: CLDR subcategory.
    """

    code: str
    name: str
    category: str
    subcategory: str


def code_of(text: str) -> str:
    """Code points as every vendor's file names can be compared: lower case, without U+FE0F and leading zeros.

    Understands names of Twemoji (``1f441-200d-1f5e8``), OpenMoji (``1F441-FE0F-200D-1F5E8-FE0F``) and Noto
    (``emoji_u1f441_200d_1f5e8``). Empty for a text that is none.

    >>> code_of("1F441-FE0F-200D-1F5E8-FE0F"), code_of("emoji_u0023_20e3"), code_of("readme")
    ('1f441-200d-1f5e8', '23-20e3', '')
    """
    plain = text.lower().removeprefix("emoji_u").replace("_", "-")
    if not CODE.fullmatch(plain):
        return ""
    return "-".join(part.lstrip("0") for part in plain.split("-") if part != "fe0f")


def read_emoji_data(path: Path) -> list[Emoji]:
    """All emoji of the file.

    Raises:
        InputError: it is missing, no such file, or names an emoji twice.
    """
    expected = f"Expected {path} to list emoji with unified, name, category and subcategory"
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise listing(expected, [f"a JSON {type(content).__name__} in place of a list with entries"])
    found: dict[str, Emoji] = {}
    problems = []
    for number, entry in enumerate(content):
        emoji = _emoji(entry)
        if emoji is None:
            problems.append(f"entry {number}: {str(entry)[:80]}")
        elif emoji.code in found:
            problems.append(f"entry {number}: {emoji.code} a second time")
        else:
            found[emoji.code] = emoji
    if problems:
        raise listing(expected, problems)
    return list(found.values())


def _emoji(entry: Any) -> Emoji | None:  # noqa: ANN401  (JSON is untyped)
    values = [entry.get(name) for name in ("unified", "name", "category", "subcategory")] if _is_object(entry) else []
    if not values or not all(isinstance(value, str) for value in (values[0], *values[2:])):
        return None
    code = code_of(values[0])
    # Some entries have no name; nothing depends on it.
    return Emoji(code, str(values[1] or "").lower(), values[2], values[3]) if code else None


def _is_object(entry: Any) -> bool:  # noqa: ANN401  (JSON is untyped)
    return isinstance(entry, dict)

"""Values as TOML writes them."""

from __future__ import annotations

import json


def toml_value(value: object) -> str:
    r"""A text, number, boolean, or list of them, as TOML.

    JSON writes them as TOML does, but for two things: letters above U+FFFF, for which JSON has pairs of escapes that
    TOML refuses, stand for themselves; and U+007F, which TOML wants escaped, is.

    >>> toml_value("owl 🦉"), toml_value("a\x7f"), toml_value(True), toml_value(["a", 2])
    ('"owl 🦉"', '"a\\u007f"', 'true', '["a", 2]')
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

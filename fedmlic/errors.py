"""The one exception for input that a person has to correct.

Everything that is wrong with a configuration, a data set, a checkpoint or a
command line is raised as ``InputError``; the command shows its text without a
traceback and exits with code 2. Anything else is a defect of the program.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Bad input, with a message of the form: expected X to be A, got B; do C.

    Attributes:
        problems: all of them where several were found at once, else empty. Each is complete:
            it says where and what, also when it is shown without the others.
    """

    problems: Sequence[str] = ()


def shown(text: object, most: int = 300, *, lines: bool = False) -> str:
    r"""Text that somebody else wrote, as it may be written into a log, a record or a terminal.

    Characters that print nothing (control sequences, marks that reverse a line) are written as
    escapes, and what is longer than ``most`` characters is cut.

    Args:
        text: anything; its ``str`` is shown.
        most: characters that are kept.
        lines: leave line breaks and tabs as they are.

    >>> shown("all is\x1b[2J well")
    'all is\\x1b[2J well'
    >>> shown("9" * 1000, most=5)
    '99999... (1,000 characters)'
    """
    whole = str(text)
    kept = "\n\t" if lines else ""
    escaped = "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode("ascii")
        for each in whole[:most]
    )
    if len(whole) <= most and len(escaped) <= 2 * most:
        return escaped
    return f"{escaped[: 2 * most]}... ({len(whole):,} characters)"


def installing(extra: str) -> str:
    """How packages that FedMLIC does not bring are installed, for the end of a message.

    Args:
        extra: its name in ``pyproject.toml``.

    >>> installing("clip")
    "pip install 'fedmlic[clip]' (in a checkout with uv: uv sync)"
    """
    return f"pip install 'fedmlic[{extra}]' (in a checkout with uv: uv sync)"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known name, or all of them.

    >>> nearest("fedgt", ["bce", "fedlgt"])
    "Did you mean 'fedlgt'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}."


def listing(expected: str, problems: Sequence[str], *, complete: bool = False) -> InputError:
    """One error that shows up to ten problems, a line each, and counts them all.

    Args:
        expected: how the message begins, such as "Expected a.txt to hold one id per line".
        problems: what follows, a line each, such as "line 3: two words".
        complete: each line says all by itself, its file and what is wrong. Otherwise the
            error's ``problems`` repeat ``expected`` before every line.

    >>> error = listing("Expected a.txt to hold one id per line", ["line 3: two words"])
    >>> print(error)
    Expected a.txt to hold one id per line, got 1 problem. Correct and start again:
      line 3: two words
    >>> error.problems
    ('Expected a.txt to hold one id per line, got line 3: two words',)
    """
    lines = [f"  {problem}" for problem in problems[:10]]
    if len(problems) > 10:
        lines.append(f"  ... and {len(problems) - 10} more")
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    error = InputError("\n".join([f"{expected}, got {count}. Correct and start again:", *lines]))
    error.problems = tuple(problems if complete else [f"{expected}, got {problem}" for problem in problems])
    return error

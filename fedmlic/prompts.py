"""From label names to the prompts of a text encoder, and from its features to one vector per label.

Shared by the kinds of ``fedmlic.text`` that encode whole texts: ``clip`` and ``minilm``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from fedmlic.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Join = Literal["plain", "concat", "average"]


class Encoder(Protocol):
    """What turns a text into a vector."""

    def fits(self, prompt: str) -> bool:
        """Whether it reads the whole prompt."""

    def encode(self, prompts: list[str], *, scaled: bool) -> NDArray[np.float64]:
        """Features, float64 ``[prompts, width]``, of length 1 or as the model gives them."""


class Prompts(NamedTuple):
    """How names become prompts.

    Attributes:
        template: the prompt, with one ``{}`` for the name.
        join: ``plain``: the label's own name; ``concat``: its fine names, joined by commas in
            one prompt; ``average``: the mean of the features of one prompt per fine name, which
            are those that the model gives, not scaled.
        fine_names: JSON file of label -> fine names, most frequent first; or empty.
        max_names: fine names that ``concat`` takes at most.
        renormalise: scale the means of ``average`` to length 1.
    """

    template: str
    join: Join
    fine_names: str
    max_names: int
    renormalise: bool

    def check(self, kind: str) -> None:
        """Raise ``InputError`` where the settings of ``kind`` contradict each other."""
        if self.template.count("{}") != 1:
            msg = f"Expected template of {kind} to contain {{}} once, for the name, got {self.template!r}."
            raise InputError(msg)
        if self.fine_names and self.join == "plain":
            msg = f"Expected join of {kind} to be concat or average where fine_names are given, got 'plain'."
            raise InputError(msg)

    def features(
        self, encoder: Encoder, names: tuple[str, ...], fine_names: Mapping[str, Sequence[str]], *, bare: bool
    ) -> tuple[NDArray[np.float64], str]:
        """One vector per name, float64 ``[names, width]``, and a note for the record.

        Args:
            encoder: makes a vector of a prompt.
            names: the labels.
            fine_names: used unless a file of them was given.
            bare: encode the names as they are, as for states.
        """
        if bare:
            groups, note = [[name] for name in names], "bare words"
        else:
            fine = _read_fine_names(self.fine_names) if self.fine_names else fine_names
            groups, note = join_prompts(encoder, names, fine, self)
        as_they_are = self.join == "average" and not bare
        rows = encoder.encode([prompt for group in groups for prompt in group], scaled=not as_they_are)
        ends = np.cumsum([len(group) for group in groups])
        means = np.stack([part.mean(axis=0) for part in np.split(rows, ends[:-1])])
        if self.renormalise:
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            note += ", means renormalised"
        return means, note


def join_prompts(
    encoder: Encoder, names: tuple[str, ...], fine_names: Mapping[str, Sequence[str]], prompts: Prompts
) -> tuple[list[list[str]], str]:
    """The prompts whose features are averaged into each label's vector, and a note for the record.

    Args:
        encoder: knows how long a prompt may be.
        names: the labels.
        fine_names: label -> fine names, most frequent first; needed unless ``join`` is ``plain``.
        prompts: the settings.

    Raises:
        InputError: a label without fine names.
    """
    template, join = prompts.template, prompts.join
    note = f"template {template!r}, {join}"
    if join == "plain":
        return [[template.replace("{}", name)] for name in names], note
    missing = [name for name in names if not fine_names.get(name)]
    if missing:
        msg = (
            f"Expected fine names for every label with join={join!r}, got none for {len(missing)} of {len(names)} "
            f"({', '.join(missing[:5])}). Give them as fine_names, or use join='plain'."
        )
        raise InputError(msg)
    if join == "average":
        return [[template.replace("{}", fine) for fine in fine_names[name]] for name in names], note
    taken = [_fitting(encoder, fine_names[name][: prompts.max_names], template) for name in names]
    shortened = [
        f"{name} {len(t)} of {len(fine_names[name])}"
        for name, t in zip(names, taken, strict=True)
        if len(t) < len(fine_names[name])
    ]
    if shortened:
        note += f", first fine names only: {', '.join(shortened)}"
    return [[template.replace("{}", ", ".join(t))] for t in taken], note


def check_lengths(encoder: Encoder, prompts: Sequence[str], limit: int) -> None:
    """Raise ``InputError`` that names prompts of more than ``limit`` tokens."""
    long = [prompt for prompt in prompts if not encoder.fits(prompt)]
    if long:
        msg = (
            f"Expected prompts of at most {limit} tokens, got {len(long)} longer ones, "
            f"first {long[0]!r}. Shorten the names or the template."
        )
        raise InputError(msg)


def _fitting(encoder: Encoder, fine_names: Sequence[str], template: str) -> Sequence[str]:
    """The longest start of ``fine_names`` whose joined prompt the model reads in full (at least one)."""
    for count in range(len(fine_names), 1, -1):
        if encoder.fits(template.replace("{}", ", ".join(fine_names[:count]))):
            return fine_names[:count]
    return fine_names[:1]


def _read_fine_names(path: str) -> dict[str, list[str]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"Expected fine_names to be a readable JSON file, got {path!r}: {error}"
        raise InputError(msg) from error
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        msg = f'Expected {path!r} to be an object like {{"label": ["fine name", ...]}}, got something else.'
        raise InputError(msg)
    return dict(content)

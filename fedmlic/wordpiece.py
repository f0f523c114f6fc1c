"""WordPiece: how BERT's uncased models cut a text into the pieces of their vocabulary.

1. Control and format characters are removed, white space becomes a blank, and every Chinese
   character becomes a word of its own.
2. Accents are removed (canonical decomposition, then no non-spacing marks), letters made small.
3. Words end at white space and at punctuation; every punctuation mark is a word.
4. A word is cut from the left into the longest pieces that the vocabulary holds, those after the
   first written with ``##`` before them. A word that cannot be cut so, or is longer than 100
   characters, is ``[UNK]``.

Unlike in the published tokenizer, names of special tokens such as ``[MASK]`` are ordinary text.

Sources: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers" (NAACL);
Wu et al. 2016, "Google's Neural Machine Translation System" (WordPiece, arXiv 1609.08144).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

UNKNOWN_PIECE, FIRST, LAST = "[UNK]", "[CLS]", "[SEP]"
LONGEST_WORD = 100
CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""First and last code points of the blocks whose characters are words."""


class WordPiece:
    """A vocabulary and the rules above.

    Args:
        tokens: the vocabulary in the order of its numbers; it has ``[UNK]``, ``[CLS]`` and ``[SEP]``.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._numbers = {token: number for number, token in enumerate(tokens)}

    def ids(self, text: str) -> list[int]:
        """Numbers of the pieces of ``text`` between those of ``[CLS]`` and ``[SEP]``."""
        pieces = [FIRST, *(piece for word in words(text) for piece in self.pieces(word)), LAST]
        return [self._numbers[piece] for piece in pieces]

    def unknown(self, text: str) -> list[str]:
        """The words of ``text`` that are ``[UNK]``."""
        return [word for word in words(text) if self.pieces(word) == [UNKNOWN_PIECE]]

    def pieces(self, word: str) -> list[str]:
        """The longest pieces from the left, or ``[UNK]`` alone.

        >>> WordPiece(["un", "##aff", "##able", "##a"]).pieces("unaffable")
        ['un', '##aff', '##able']
        """
        found: list[str] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self._numbers), None)
            if end is None:
                return [UNKNOWN_PIECE]
            found.append(mark + word[start:end])
            start = end
        return found or [UNKNOWN_PIECE]


def words(text: str) -> list[str]:
    """The words of ``text`` without accents, in small letters.

    >>> words("Café-au-lait: 20 °C")
    ['cafe', '-', 'au', '-', 'lait', ':', '20', '°c']
    """
    kept = "".join(_cleaned(letter) for letter in text)
    bare = "".join(letter for letter in unicodedata.normalize("NFD", kept) if unicodedata.category(letter) != "Mn")
    # Letter by letter, since the small form of a Greek sigma would depend on its place.
    small = "".join(letter.lower() for letter in bare)
    return "".join(f" {letter} " if is_punctuation(letter) else letter for letter in small).split()


def is_punctuation(letter: str) -> bool:
    """Whether a character is a word of its own: Unicode's punctuation and all signs of ASCII."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _cleaned(letter: str) -> str:
    if letter.isspace() and (letter in "\t\n\r" or unicodedata.category(letter) != "Cc"):
        return " "
    if letter == "\ufffd" or unicodedata.category(letter) in {"Cc", "Cf", "Co", "Cs"}:
        return ""
    return f" {letter} " if any(first <= ord(letter) <= last for first, last in CHINESE) else letter

"""WordPiece on small vocabularies: BERT's rules one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.wordpiece import WordPiece, is_punctuation, words

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ",", "飞", "a"]


def test_the_example_of_the_first_release():
    """Accents, capitals, a comma without blanks; the numbers are places in the list."""
    assert WordPiece(VOCABULARY).ids("UNwant\u00e9d,running") == [1, 7, 4, 5, 10, 8, 9, 2]


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("unwanted", ["un", "##want", "##ed"]),
        ("want", ["want"]),  # longest first: not "wa"
        ("wanting", ["want", "##ing"]),
        ("ing", ["[UNK]"]),  # only as a continuation
        ("unwantedx", ["[UNK]"]),  # not "un ##want ##ed [UNK]"
        ("a" * 100, ["[UNK]"]),
    ],
)
def test_a_word_is_cut_into_the_longest_pieces_or_is_unknown(word, pieces):
    assert WordPiece(VOCABULARY).pieces(word) == pieces


def test_words_of_more_than_100_letters_are_unknown():
    tokenizer = WordPiece([*VOCABULARY, "##a"])

    assert tokenizer.pieces("a" * 100) == ["a"] + ["##a"] * 99
    assert tokenizer.pieces("a" * 101) == ["[UNK]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Traffic\tlight\n", ["traffic", "light"]),
        ("a\u00a0b\u3000c\u2028d", ["a", "b", "c", "d"]),
        ("a\u200bb\u00adc\x00d\ufffde\x0bf", ["abcdef"]),
        ("t-shirt (red)", ["t", "-", "shirt", "(", "red", ")"]),
        ("1+1=2 $5 a_b c|d", ["1", "+", "1", "=", "2", "$", "5", "a", "_", "b", "c", "|", "d"]),
        ("«été» ¿qué?", ["«", "ete", "»", "¿", "que", "?"]),
        ("20 °C €5", ["20", "°c", "€5"]),  # symbols beyond ASCII are no punctuation
        ("Größe ÅNGSTRÖM", ["große", "angstrom"]),
        ("ΣΊΣΥΦΟΣ", ["σισυφοσ"]),
        ("İstanbul", ["istanbul"]),
        ("飞机abc飛", ["飞", "机", "abc", "飛"]),
        ("ひこうき 비행기", ["ひこうき", *["\u1107\u1175\u1112\u1162\u11bc\u1100\u1175"]]),
        ("", []),
        (" \u200b\t", []),
    ],
)
def test_words_end_at_blanks_punctuation_and_chinese_characters(text, expected):
    assert words(text) == expected


def test_special_tokens_in_a_text_are_text():
    tokenizer = WordPiece([*VOCABULARY, "[", "]", "cls"])

    assert tokenizer.ids("[CLS]") == [1, 13, 15, 14, 2]


def test_unknown_words_are_listed():
    assert WordPiece(VOCABULARY).unknown("wanted zebra, running 飞机") == ["zebra", "机"]


@pytest.mark.parametrize(("letter", "expected"), [("^", True), ("`", True), ("—", True), ("a", False), ("€", False)])
def test_punctuation_is_unicodes_and_all_signs_of_ascii(letter, expected):
    assert is_punctuation(letter) is expected


LETTERS = st.text("abc", min_size=1, max_size=8)


@given(word=LETTERS, starts=st.sets(LETTERS), rest=st.sets(LETTERS))
def test_pieces_spell_the_word_and_each_is_the_longest(word, starts, rest):
    tokenizer = WordPiece(["[UNK]", *starts, *(f"##{piece}" for piece in rest)])

    pieces = tokenizer.pieces(word)

    if pieces == ["[UNK]"]:
        return
    assert "".join(piece.removeprefix("##") for piece in pieces) == word
    left = word
    for piece in pieces:
        known = rest if piece.startswith("##") else starts
        bare = piece.removeprefix("##")
        assert bare == max((each for each in known if left.startswith(each)), key=len)
        left = left[len(bare) :]

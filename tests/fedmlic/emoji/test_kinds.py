from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.emoji.kinds import KINDS, NUM_FOLDS, base, cast, groups
from fedmlic.formats.emoji_data import Emoji

BIRDS = [Emoji(f"1f9{number:02x}", "", "Animals & Nature", "animal-bird") for number in range(23)]


def test_labels_are_words_and_differ():
    names = [kind.name for kind in KINDS]

    assert len(set(names)) == len(names)
    assert all(name == name.strip() and "-" not in name and "_" not in name for name in names)


def test_no_subcategory_shows_two_kinds():
    counts = Counter(sub for kind in KINDS for sub in kind.subcategories)

    assert set(counts.values()) == {1}


def test_every_prefix_of_the_labels_has_several_contexts():
    assert len(groups(4)) == 4
    assert len(groups(32)) == len(groups(len(KINDS))) == 7


def test_others_are_things_without_a_label():
    feather = Emoji("1fab6", "feather", "Animals & Nature", "animal-bird")
    phone = Emoji("1f4f1", "mobile phone", "Objects", "phone")
    flag = Emoji("1f3f3", "white flag", "Flags", "flag")
    heart = Emoji("1f49a", "green heart", "Smileys & Emotion", "heart")

    found = cast([*BIRDS, feather, phone, flag, heart], 32)

    kinds = dict(zip(found.codes, found.kind.tolist(), strict=True))
    assert [kinds[one.code] for one in (BIRDS[0], feather, phone, heart)] == [0, 32, 32, 32]
    assert flag.code not in kinds
    assert found.codes == sorted(found.codes)


@given(st.permutations(BIRDS))
@settings(deadline=None)
def test_folds_are_even_and_do_not_depend_on_the_order(birds):
    found = cast(birds, 4)

    assert max(Counter(found.fold.tolist()).values()) - min(Counter(found.fold.tolist()).values()) <= 1
    assert set(found.fold.tolist()) == set(range(NUM_FOLDS))
    assert found.fold.tolist() == cast(BIRDS, 4).fold.tolist()


def test_variants_of_one_emoji_lie_in_one_fold():
    workers = [
        Emoji(code, "", "People & Body", "person-role")
        for role in ("1f33e", "1f373", "1f393", "1f3a4", "1f3a8", "1f3eb", "1f3ed")
        for code in (f"1f468-200d-{role}", f"1f469-200d-{role}", f"1f9d1-200d-{role}")
    ]

    found = cast(workers, 32)

    folds = {}
    for code, fold in zip(found.codes, found.fold.tolist(), strict=True):
        folds.setdefault(base(code), set()).add(fold)
    assert len(folds) == 7
    assert all(len(its) == 1 for its in folds.values())

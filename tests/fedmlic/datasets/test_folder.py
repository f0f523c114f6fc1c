import csv
import os
import shutil
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets import folder as module
from fedmlic.datasets.folder import folder
from fedmlic.errors import InputError
from fedmlic.spec import build

PLAIN = "path,labels,split\na.png,cat;dog,train\nsub/b.png,dog,val\nc.png,,test\n"


def save(path, pixels=None, **options):
    """Write an image; by default 10 x 10 pixels of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((10, 10, 3), 100, np.uint8) if pixels is None else pixels
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """A folder with four images and no table."""
    for name in ("a.png", "sub/b.png", "c.png", "d.png"):
        save(tmp_path / name)
    return tmp_path


def made(root, text, **options):
    """The data set of a table, given as text or bytes."""
    (root / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder(root=str(root), image_size=8, **options)


def states(data):
    """The labels of a data set, as a list of rows."""
    return data.table().labels.tolist()


def problem(root, text, **options):
    """What is said about a wrong table."""
    with pytest.raises(InputError) as caught:
        made(root, text, **options)
    return str(caught.value)


def decoded(path, **options):
    """The stored pixels of one image file."""
    (path.parent / "labels.csv").write_text(f"path,labels,split\n{path.name},x,train\n")
    return folder(root=str(path.parent), **{"image_size": 8, **options}).image(0)


# The two forms of labels


def test_listed_labels(root):
    data = made(root, PLAIN)

    assert data.label_names == ("cat", "dog")
    assert states(data) == [[1, 1], [0, 1], [-1, -1]]
    assert data.table().splits == ["train", "val", "test"]
    assert data.table().image_ids == ["a.png", "sub/b.png", "c.png"]


def test_a_blank_list_can_mean_that_there_is_nothing(root):
    assert states(made(root, PLAIN, blank="absent"))[2] == [0, 0]


def test_chosen_names_fix_order_and_vocabulary(root):
    data = made(root, PLAIN, label_names=["dog", "bird", "cat"])

    assert data.label_names == ("dog", "bird", "cat")
    assert states(data) == [[1, 0, 1], [1, 0, 0], [-1, -1, -1]]


def test_another_separator_and_spaces_and_repeats(root):
    text = "path,labels,split\na.png, cat | dog |,train\nc.png,dog|dog,train\n"

    assert states(made(root, text, separator="|")) == [[1, 1], [0, 1]]


WIDE = """path,owner,cat,dog,split
a.png,Ann,1,,train
sub/b.png,Ann,0.0,,val
c.png,Bob,-1,U,test
d.png,Bob,-2,1.0,train
"""


def test_wide_labels(root):
    data = made(root, WIDE)

    assert data.label_names == ("cat", "dog")
    assert states(data) == [[1, -1], [0, -1], [-1, -2], [-2, 1]]
    assert states(made(root, WIDE, blank="absent")) == [[1, 0], [0, 0], [-1, -2], [-2, 1]]


def test_chosen_columns_only(root):
    text = "path,age,dog,cat,split\na.png,7,1,0,train\n"

    data = made(root, text, label_names=["cat", "dog"])

    assert states(data) == [[0, 1]]
    assert data.table().report["unused_columns"] == ["age"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1, 0, -1, -2]), min_size=3, max_size=3), min_size=4, max_size=4))
def test_both_forms_and_a_plain_loop_agree(tmp_path_factory, labels):
    root = tmp_path_factory.mktemp("forms")
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        save(root / name)
    cells = {1: "1", 0: "0", -1: "", -2: "u"}
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["path", "x", "y", "z", "split"],
                *([n, *map(cells.get, row), "train"] for n, row in zip(names, labels, strict=True)),
            ]
        )

    wide = folder(root=str(root), image_size=8)
    present = [[name for name, state in zip("xyz", row, strict=True) if state == 1] for row in labels]
    lines = [f"{name},{';'.join(labels)},train\n" for name, labels in zip(names, present, strict=True)]
    listed = made(root, "".join(["path,labels,split\n", *lines]), label_names=list("xyz"), blank="absent")

    assert states(wide) == labels
    assert (np.array(states(listed)) == 1).tolist() == (np.array(labels) == 1).tolist()


# How tables are written


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace("/", "\\").encode(),
        lambda text: text.replace("sub/b.png", "./sub//b.png").encode(),
        lambda text: text.replace("\n", "\n\n").encode() + b",,\n",
        lambda text: text.replace("train", " Train ").encode(),
        lambda text: text.replace("a.png", '"a.png"').encode(),
    ],
    ids=["byte order mark", "CRLF", "no final newline", "backslashes", "odd path", "blank lines", "spaces", "quotes"],
)
def test_tables_from_other_programs_read_the_same(root, change):
    expected = made(root, PLAIN).table()

    table = made(root, change(PLAIN)).table()

    assert expected.labels.tolist() == table.labels.tolist()
    assert (expected.image_ids, expected.splits) == (table.image_ids, table.splits)


def test_commas_and_other_letters_in_names(root):
    save(root / "ä, b.png")
    text = 'path,labels,split\n"ä, b.png","Straße, nass;冬",train\n'

    data = made(root, text)

    assert data.label_names == ("Straße, nass", "冬")
    assert data.table().image_ids == ["ä, b.png"]


def test_another_delimiter(root):
    assert states(made(root, PLAIN.replace(";", "|").replace(",", ";"), delimiter=";", separator="|"))[0] == [1, 1]
    assert "give the right delimiter" in problem(root, PLAIN.replace(",", "\t"))


def test_composed_and_decomposed_letters_are_one_label_one_owner_and_one_file(root):
    whole, parts = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    save(root / f"{parts}.png")
    lines = [f"a.png,{whole},{parts},train", f"c.png,{parts};x,{whole},train", f"{whole}.png,x,,train"]

    table = made(root, "\n".join(["path,labels,owner,split", *lines, ""])).table()

    assert table.labels.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert table.owner_names == [whole]
    assert table.image_ids[2] == f"{whole}.png"
    assert table.sources[2] == str(root / f"{parts}.png")
    wide = f"path,{parts},split\na.png,1,train\n"
    assert made(root, wide, label_names=[whole]).label_names == (whole,)
    assert "more than once" in problem(root, f"path,{parts},{whole},split\na.png,1,0,train\n")
    twice = f"path,labels,split\n{whole}.png,x,train\n{parts}.png,x,train\n"
    assert problem(root, twice).count("appears 2 times") == 2


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["Kreis", "kreis"], "'Kreis', 'kreis' differ only in case"),
        (["hot dog;x", "hot_dog"], "'hot dog', 'hot_dog' differ only in"),
        (['"a, b"', "a|b"], "'a, b' looks like several labels with ',' between them; separator=',' divides it"),
        (["a;b", '"a, b"'], "'a, b' looks like several labels"),
        (["a\0", "cat"], "holds a control character"),
        (["nan", "cat"], "'nan' is how an empty cell is written"),
        (["1;0;0", "0;0;1"], "got states such as ['1', '0', '0']. Make one column per label"),
        (['"[1, 0]"', '"[0, 1]"'], "looks like several labels"),
    ],
)
def test_labels_that_are_almost_certainly_mistakes_are_refused(root, cells, message):
    text = "path,labels,split\n" + "".join(
        f"{name},{cell},train\n" for name, cell in zip(("a.png", "c.png"), cells, strict=True)
    )

    assert message in problem(root, text)


def test_names_that_are_listed_are_meant(root):
    text = 'path,labels,split\na.png,A,train\nc.png,"a;A, a;nan",train\n'

    assert states(made(root, text, label_names=["A", "a", "A, a", "nan"])) == [[1, 0, 0, 0], [0, 1, 1, 1]]
    assert "3 problems" in problem(root, text)


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_that_numbers_the_lines_is_no_label(root, name):
    data = made(root, f"{name},path,cat,split\n0,a.png,1,train\n1,c.png,0,train\n")

    assert data.label_names == ("cat",)
    assert data.table().report["unused_columns"] == [name or "column 1 without a name"]
    assert "not read" in data.table().report["warnings"][0]
    assert "more than once or blank" in problem(root, f"{name},path,cat\n1,a.png,1\n1,c.png,0\n")


def test_known_columns_in_other_letters_are_named(root):
    message = problem(root, "path,Labels,SPLIT\na.png,cat,train\n")

    assert "'Labels': Did you mean 'labels'?" in message
    assert "'SPLIT': Did you mean 'split'?" in message


def test_a_column_that_may_number_the_rows_has_to_be_meant(root):
    text = "index,path,cat,split\n0,a.png,1,train\n1,c.png,0,train\n"

    assert "'index': does it number the rows? label_names=[...] says" in problem(root, text)
    assert made(root, text, label_names=["cat"]).label_names == ("cat",)
    assert made(root, text, label_names=["index", "cat"]).label_names == ("index", "cat")


def test_a_column_that_is_no_label_is_one_problem(root):
    lines = [
        f"{name},{age},1,train\n"
        for name, age in zip(("a.png", "sub/b.png", "c.png", "d.png"), range(7, 11), strict=True)
    ]

    message = problem(root, "".join(["path,age,cat,split\n", *lines]))

    assert "got 2 problems" in message
    assert "line 3: and 3 more such cells in column 'age'. If it is no label, name those that are" in message


def test_truth_values_are_states(root):
    assert states(made(root, "path,cat,dog,split\na.png,True,FALSE,train\n")) == [[1, 0]]


def test_problems_of_names_and_of_lines_come_together(root):
    message = problem(root, "path,labels,split\na.png,Cat,train\nc.png,cat,dev\nnone.png,cat,train\n")

    assert "'Cat', 'cat' differ only in case" in message
    assert "line 3: split 'dev'" in message
    assert "line 4: no image 'none.png'" in message


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b'[{"path": 1}]', "JSON"),
        (b'\xef\xbb\xbf {"a": 1}', "JSON"),
        (b"PK\x03\x04", "Excel"),
        (b"\xff\xfep\0", "UTF-16"),
    ],
)
def test_other_files_are_called_what_they_are(root, start, what):
    message = problem(root, start)

    assert "to be a CSV file in UTF-8, got" in message
    assert what in message


def test_a_cell_too_long_is_named_by_its_line(root):
    message = problem(root, f"path,labels,split\na.png,x,train\nc.png,{'x' * 140000},train\n")

    assert "line 3: a cell of more than 131,072 characters" in message


def test_absolute_paths_into_the_folder(root, tmp_path_factory):
    link = tmp_path_factory.mktemp("other") / "link"
    link.symlink_to(root)
    text = f"path,labels,split\n{root}/a.png,x,train\n{os.path.realpath(root)}/./sub/b.png,x,train\n"

    assert made(root, text).table().image_ids == ["a.png", "sub/b.png"]
    assert folder(root=str(link)).table().image_ids == ["a.png", "sub/b.png"]
    assert "is not a path below the folder" in problem(root, f"path,labels\n{root.parent}/a.png,x\n")
    assert "is not a path below the folder" in problem(root, f"path,labels\n{root}x/a.png,x\n")
    assert problem(root, f"path,labels,split\n{root}/a.png,x,train\na.png,x,train\n").count("appears 2 times") == 2


def test_missing_images_come_with_a_hint(root):
    text = f"path,labels,split\nA.PNG,x,train\n{root.name}/c.png,x,train\n"

    assert "no image 'A.PNG'. Did you mean 'a.png'?" in problem(root, text)
    assert "no image 'c'. Did you mean 'c.png'?" in problem(root, "path,labels,split\nc,x,train\n")
    assert "no image 'xxx" in problem(root, f"path,labels,split\n{'x' * 5000}.png,x,train\n")
    assert f"no image '{root.name}/c.png'. Did you mean 'c.png'?" in problem(root, text)


# Owners and splits


def test_owners_are_numbered_by_name(root):
    owners = {"a.png": "Zoe", "sub/b.png": "9007199254740993", "c.png": "", "d.png": "Zoe"}
    lines = [f"{name},x,{owner},train\n" for name, owner in owners.items()]
    text = "".join(["path,labels,owner,split\n", *lines])

    table = made(root, text).table()

    assert table.owners.tolist() == [1, 0, -1, 1]
    assert table.owner_names == ["9007199254740993", "Zoe"]


def many(root, num_owners, images_each=3):
    lines = []
    for number in range(num_owners * images_each):
        shutil.copy(root / "a.png", root / f"m{number}.png")
        lines.append(f"m{number}.png,x,owner {number // images_each}\n")
    return lines


def test_random_splits_keep_owners_together_and_shares_right(root):
    lines = many(root, 20)

    table = made(root, "".join(["path,labels,owner\n", *lines])).table()

    of_owner = {}
    for owner, split in zip(table.owners.tolist(), table.splits, strict=True):
        of_owner.setdefault(owner, set()).add(split)
    assert all(len(splits) == 1 for splits in of_owner.values())
    assert [table.splits.count(split) for split in ("train", "val", "test")] == [48, 6, 6]


def test_random_splits_do_not_depend_on_the_order_of_lines(root):
    lines = many(root, 20, images_each=1)
    first = made(root, "".join(["path,labels\n", *(line.rsplit(",", 1)[0] + "\n" for line in lines)])).table()

    second = made(root, "".join(["path,labels\n", *(line.rsplit(",", 1)[0] + "\n" for line in lines[::-1])])).table()

    of = dict(zip(first.image_ids, first.splits, strict=True))
    assert of == dict(zip(second.image_ids, second.splits, strict=True))
    assert [first.splits.count(split) for split in ("train", "val", "test")] == [16, 2, 2]
    third = folder(root=str(root), seed=1).table()
    assert of != dict(zip(third.image_ids, third.splits, strict=True))


def test_a_few_owners_are_all_in_every_split_unless_asked_otherwise(root):
    text = "".join(["path,labels,owner\n", *many(root, 4, images_each=20)])

    table = made(root, text).table()

    for owner in range(4):
        splits = [split for split, whose in zip(table.splits, table.owners.tolist(), strict=True) if whose == owner]
        assert [splits.count(split) for split in ("train", "val", "test")] == [16, 2, 2]
    assert "split_by='owner' keeps them whole" in table.report["warnings"][0]
    assert "warnings" not in made(root, text, split_by="image").table().report
    assert "or split_by='image'" in problem(root, text, split_by="owner")
    whole = made(root, text, split_by="owner", val_fraction=0.25, test_fraction=0.25).table()
    assert all(
        len({s for s, o in zip(whole.splits, whole.owners.tolist(), strict=True) if o == owner}) == 1
        for owner in range(4)
    )
    assert "of 4 owners have no training image" in whole.report["warnings"][0]


def test_too_few_owners_for_all_splits(root):
    text = "path,labels,owner\na.png,x,A\nc.png,x,A\n"

    assert "none left for ['val', 'test']. Add a column 'split'" in problem(root, text)
    assert made(root, text, val_fraction=0, test_fraction=0).table().splits == ["train"] * 2


# What counts as unchanged


def test_identity_follows_content_and_not_the_place(root, tmp_path_factory):
    first = made(root, PLAIN)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, elsewhere)

    assert folder(root=str(elsewhere), image_size=8).identity == first.identity
    assert folder(root=str(elsewhere), image_size=9).identity != first.identity
    assert folder(root=str(elsewhere), image_size=8, resize="pad").identity != first.identity
    assert folder(root=str(elsewhere), image_size=8, seed=5).identity == first.identity  # its table has splits
    os.utime(elsewhere / "a.png", ns=(1, 1))
    assert folder(root=str(elsewhere), image_size=8).identity != first.identity
    (elsewhere / "labels.csv").write_text(PLAIN + "d.png,cat,train\n")
    assert folder(root=str(elsewhere), image_size=8).identity != first.identity


# Wrong tables


def test_all_problems_of_a_table_at_once_in_the_order_of_its_lines(root):
    text = (
        "path,labels,split\n"
        "a.png,cat,train\n"
        "./a.png,kat,train\n"
        "../a.png,cat,train\n"
        "/etc/passwd,cat,train\n"
        "C:\\a.png,cat,train\n"
        ",cat,train\n"
        "sub,cat,train\n"
        "none.png,cat,dev\n"
    )

    message = problem(root, text, label_names=["cat", "dog"])

    assert message.splitlines()[1:] == [
        "  line 2: 'a.png' appears 2 times",
        "  line 3: 'a.png' appears 2 times",
        "  line 3: label 'kat'. Did you mean 'cat'?",
        "  line 4: '../a.png' is not a path below the folder",
        "  line 5: '/etc/passwd' is not a path below the folder",
        "  line 6: 'C:\\\\a.png' is not a path below the folder",
        "  line 7: no path",
        "  line 8: no image 'sub'",
        "  line 9: no image 'none.png'",
        "  line 9: split 'dev'. Known: test, train, val.",
    ]
    assert "got 10 problems" in message


def test_ten_problems_are_shown_and_all_are_counted(root):
    lines = [f"missing{i}.png,x,train\n" for i in range(25)]

    message = problem(root, "".join(["path,labels,split\n", *lines]))

    assert "got 25 problems" in message
    assert message.count("missing") == 10
    assert message.endswith("... and 15 more")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file. Add one line per image."),
        ("path,labels\n", "got a header alone. Add one line per image."),
        ("file,labels\na.png,x\n", "to have a column 'path', got ['file', 'labels']"),
        ("path,labels,labels\na.png,x,y\n", "got ['labels'] more than once or blank"),
        ("path,labels,\na.png,x,y\n", "got [''] more than once or blank"),
        ("path,labels\na.png,x\nc.png\nd.png,x,y\n", "line 3: 1 cells\n  line 4: 3 cells"),
        ("path,split\na.png,train\n", "Expected different label names, at least one, got []"),
        ("path,labels\na.png,\n", "Expected different label names, at least one, got []"),
        ('path,labels\n"a.png,x\n', "line 2: a quotation mark that opens there and is not closed"),
        (b"path,labels\n\xff\xfe.png,x\n", "got byte 0xff on line 2, which is none. Save it again as 'CSV UTF-8'"),
        ("path,cat\na.png,yes\n", "'yes' in column 'cat', which may say 1, 0, -1, -2, u or blank"),
    ],
)
def test_a_wrong_table_is_explained(root, text, message):
    assert message in problem(root, text)


def test_wrong_names_are_explained(root):
    assert "'catt': Did you mean 'cat'?" in problem(root, WIDE, label_names=["catt", "dog"])
    assert "Expected different label names" in problem(root, WIDE, label_names=["cat", "cat"])


def test_a_missing_folder_or_table_is_explained(root):
    with pytest.raises(InputError, match=r"to be a folder, got '.*none'"):
        folder(root=str(root / "none"))
    (root / "other.csv").write_text(PLAIN)
    with pytest.raises(InputError, match=r"got other\.csv there\. Create it or give its name as csv="):
        folder(root=str(root))
    assert folder(root=str(root), csv="other.csv").label_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("csv='x.csv'", "Expected root of dataset folder"),
        ("root='.', resize='stretch'", "'squash', 'crop' or 'pad'"),
        ("root='.', image_size=0", "greater than or equal to 8"),
        ("root='.', channels=4", "1 or 3"),
        ("root='.', sepparator='|'", "Did you mean 'separator'"),
    ],
)
def test_bad_parameters_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        build("dataset", f"folder({text})")


# Pixels


def test_palettes_grey_cmyk_and_bilevel_images(tmp_path):
    colour = Image.new("RGB", (10, 10), (200, 30, 60))
    pictures = {
        "p.png": colour.convert("P", palette=Image.Palette.ADAPTIVE),
        "l.png": colour.convert("L"),
        "la.png": colour.convert("LA"),
        "k.jpg": colour.convert("CMYK"),
        "b.png": Image.new("1", (10, 10), 1),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)

        pixels = decoded(tmp_path / name)

        assert pixels.shape == (8, 8, 3)
        assert np.abs(pixels.astype(int) - np.asarray(picture.convert("RGB"))[0, 0]).max() <= 6


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.repeat(np.array([[0, 257, 25700, 65535]], np.uint16), 4, axis=0)
    Image.fromarray(values).save(tmp_path / "deep.png")

    pixels = decoded(tmp_path / "deep.png", channels=1)

    assert pixels.shape == (8, 8, 1)
    assert (pixels[0, 0, 0], pixels[0, 7, 0]) == (0, 255)
    assert abs(int(pixels[0, 4, 0]) - 100) < 45


def test_transparency_is_black(tmp_path):
    pixels = np.full((10, 10, 4), 255, np.uint8)
    pixels[:, :5, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "clear.png")

    stored = decoded(tmp_path / "clear.png")

    assert stored[:, :3].max() == 0
    assert stored[:, 5:].min() == 255


def test_a_camera_held_sideways_is_turned(tmp_path):
    """Orientation 6: the stored picture is to be turned by 90 degrees clockwise."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255  # left half white: upper half once turned
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", pixels, exif=exif, quality=95)

    stored = decoded(tmp_path / "turned.jpg")

    assert stored[:3].min() > 200
    assert stored[5:].max() < 55


@pytest.mark.parametrize(("resize", "columns"), [("squash", 8), ("crop", 8), ("pad", 4)])
def test_three_ways_to_make_it_square(tmp_path, resize, columns):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20] = 255
    save(tmp_path / "tall.png", pixels)

    stored = decoded(tmp_path / "tall.png", resize=resize)[..., 0]

    assert (stored[1] > 200).sum() == columns
    assert (stored[6] < 50).all()


def test_large_photographs_shrink_to_their_means(tmp_path):
    """JPEG's own reduction may not change what is seen."""
    pixels = np.zeros((640, 640, 3), np.uint8)
    pixels[:, 320:] = (250, 120, 10)
    save(tmp_path / "photo.jpg", pixels, quality=95)

    stored = decoded(tmp_path / "photo.jpg").astype(int)

    assert np.abs(stored[:, :3]).max() <= 4
    assert np.abs(stored[:, 5:] - [250, 120, 10]).max() <= 4


def test_every_bad_image_is_named_when_the_corpus_is_built(root, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    save(root / "cut.jpg", noise)
    save(root / "cut.png", noise)
    for name in ("cut.jpg", "cut.png"):
        os.truncate(root / name, (root / name).stat().st_size // 2)
    (root / "zero.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("not an image")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(root / "float.tiff")
    bad = ["cut.jpg", "cut.png", "zero.jpg", "text.jpg", "float.tiff"]
    lines = [f"{name},x,train\n" for name in [*bad, "a.png"]]

    data = made(root, "".join(["path,labels,split\n", *lines]))
    with pytest.raises(InputError, match="got 5 problems") as caught:
        open_corpus(data, home=home)

    for name in bad:
        assert f"{root / name}: Expected an" in str(caught.value)
    assert "a.png" not in str(caught.value)
    assert data.table().report["modes"] == {"F": 1, "RGB": 3, "unreadable": 2}


def test_a_folder_becomes_a_corpus(root, tmp_path_factory):
    save(root / "a.png", np.full((10, 10, 3), 7, np.uint8))
    data = made(root, WIDE)

    corpus = open_corpus(data, home=tmp_path_factory.mktemp("home"))

    place = corpus.image_ids.index("a.png")
    assert (corpus.images.take(np.array([place])) == 7).all()
    assert corpus.labels.take(np.array([place])).tolist() == [[1, -1]]
    assert corpus.owner_names == ["Ann", "Bob"]
    assert corpus.owners[place] == 0
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert corpus.manifest["report"]["modes"] == {"RGB": 4}
    assert str(root) not in (corpus.path / "manifest.json").read_text()


def test_the_module_says_what_a_cell_may_say():
    assert set(module.WIDE_VALUES.values()) == {1, 0, -1, -2}


@pytest.mark.parametrize("names", [["cat", ""], ["cat", "cat "], []])
def test_label_names_are_different_and_not_blank(root, names):
    with pytest.raises(InputError, match=r"Name every label in label_names once, and none that is blank"):
        made(root, PLAIN, label_names=names)

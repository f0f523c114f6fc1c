"""``fedmlic data``: a corpus from a download, a download verified, a corpus looked at."""

import csv
import hashlib
import io
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import matthews_corrcoef
from typer.testing import CliRunner

from fedmlic.corpus import load_corpus, open_corpus
from fedmlic.dataset import DIFFICULT_ONLY, MACHINE, Dataset, Flags, Objects, Table
from fedmlic.errors import InputError
from fedmlic.federation import build_federation
from fedmlic.spec import build
from sim.command import app
from sim.commands.settings import read_options
from sim.data import prepare as module
from sim.data.check import check_data
from sim.reports import data_pictures, data_report
from sim.reports import portrait as portraits

PLUG = """
import numpy as np
from fedmlic.dataset import Dataset, Table

def rows(*, root: str = "here", num_images: int = 6):
    def table():
        labels = np.tile(np.array([[1, 0], [0, 1]], np.int8), (num_images // 2, 1))
        print("noise of a plug-in")
        return Table([str(i) for i in range(num_images)], ["train"] * num_images, labels, np.full(num_images, -1))
    return Dataset(
        "rows", "1", {"n": num_images}, ("a", "b"), (8, 8, 3), table, lambda row: np.full((8, 8, 3), row, np.uint8),
        expected={"train": 9, "val": 0, "labels": 2, "positives/a": 4, "positives/c": 1},
    )
"""


@pytest.fixture
def fedmlic(tmp_path, monkeypatch):
    """A function: run the command in this process, in an empty folder with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FEDMLIC_HOME", str(tmp_path / "home"))

    def call(*arguments):
        result = CliRunner().invoke(app, ["data", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def photos(tmp_path):
    """A folder of 20 different images of four owners with a table."""
    root = tmp_path / "photos"
    (root / "img").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["path,labels,owner,split\n"]
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(root / "img" / f"{number:02}.png")
        names = [name for place, name in enumerate(("cat", "dog", "bird")) if number % (place + 2) == 0]
        split = ("train", "train", "val", "test")[number % 4]
        lines.append(f"img/{number:02}.png,{';'.join(names)},o{number % 4},{split}\n")
    (root / "labels.csv").write_text("".join(lines))
    return root


def found(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def one_line(result):
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def digests(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(path).iterdir())}


# Import


def test_import_builds_the_corpus_that_a_run_opens(fedmlic, photos):
    report = found(fedmlic("import", "folder", "--root", photos, "image-size=16", "blank=absent", "--json"))

    with (photos / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    present = sum(len([name for name in row["labels"].split(";") if name]) for row in rows)
    spec = f"folder(root={str(photos)!r}, image_size=16, blank='absent')"
    assert report["num_images"] == 20
    assert report["num_labels"] == 3
    assert report["num_present"] == present
    assert report["num_absent"] == 60 - present
    assert (report["num_unknown"], report["num_uncertain"], report["num_owners"]) == (0, 0, 4)
    assert report["splits"] == {"train": 10, "val": 5, "test": 5}
    assert report["warnings"] == report["bad_files"] == []
    assert open_corpus(build("dataset", spec)).path == Path(report["corpus"])
    assert load_corpus(report["corpus"]).key == report["key"]
    assert open_corpus(build("dataset", report["dataset"])).path == Path(report["corpus"])


def test_unknown_entries_are_counted(fedmlic, photos):
    report = found(fedmlic("import", "folder", "--root", photos, "image_size=16", "--json"))

    blank = sum(line.split(",")[1] == "" for line in (photos / "labels.csv").read_text().splitlines())
    assert blank > 0
    assert report["num_unknown"] == 3 * blank


def test_progress_is_plain_lines_on_stderr_and_the_summary_is_a_table(fedmlic, photos):
    result = fedmlic("import", "folder", "--root", photos, "image-size=16")

    assert result.stderr.splitlines() == ["building folder: 20/20"]
    assert "folder: 20 images, 3 labels" in result.stdout
    assert "10 images" in result.stdout
    assert 'dataset = "corpus(path=' in result.stdout


def test_the_second_import_only_opens(fedmlic, photos):
    first = fedmlic("import", "folder", "--root", photos, "image-size=16", "--json")
    second = fedmlic("import", "folder", "--root", photos, "image-size=16", "--json")

    assert found(first) == found(second)
    assert second.stderr == ""


def test_out_is_exactly_that_folder(fedmlic, photos, tmp_path):
    arguments = ("import", "folder", "--root", photos, "image-size=16", "--json", "--out", tmp_path / "mine")
    report = found(fedmlic(*arguments))

    assert report["corpus"] == str(tmp_path / "mine")
    assert found(fedmlic(*arguments)) == report
    assert not (tmp_path / "home").exists()
    message = one_line(fedmlic("import", "folder", "--root", photos, "image-size=32", "--out", tmp_path / "mine"))
    assert "got the corpus" in message
    assert "something else" in one_line(fedmlic("import", "folder", "--root", photos, "--out", photos))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foldr", "--root", "photos"], "Did you mean 'folder'?"),
        (["folder"], "Give --root FOLDER."),
        (["folder", "--root", "nowhere"], "got 'nowhere', which does not exist"),
        (["folder", "--root", "photos", "image-sise=3"], "got 'image_sise'. Did you mean 'image_size'?"),
        (["folder", "--root", "photos", "image-size=4"], "greater than or equal to 8, got 4"),
        (["folder", "--root", "photos", "image-size"], "Expected options as key=value, got 'image-size'"),
        (["multidigits", "--root", "photos"], "reads nothing from disk"),
        (["corpus", "--root", "photos"], "to be a complete corpus"),
        (["folder(", "--root", "photos"], "to look like name(key=value, ...)"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_wrong_commands_are_one_line(fedmlic, arguments, message):
    assert message in one_line(fedmlic("import", *arguments))


def test_options_are_read_like_settings():
    options = read_options(["a-b=1", "c=x,y", "d=['p', 'q']", "e=true", "f={train='x'}", "g="])

    assert options == {"a-b": 1, "c": "x,y", "d": ["p", "q"], "e": True, "f": {"train": "x"}, "g": ""}
    for wrong in ("x", "=3"):
        with pytest.raises(InputError, match="as key=value"):
            read_options([wrong])


def test_a_name_may_carry_arguments_and_options_win(fedmlic, photos):
    report = found(fedmlic("import", f"folder(root={str(photos)!r}, image_size=8)", "image-size=16", "--json"))

    assert report["image_shape"] == [16, 16, 3]


def test_published_counts_are_compared_softly_and_plug_ins_may_print(fedmlic, plug):
    plug("shelf", PLUG)
    result = fedmlic("import", "shelf.rows", "--root", ".", "--json")
    report = found(result)

    assert report["warnings"] == [
        "images in train: 6 here, 9 published",
        "images with 'a': 3 here, 4 published",
        "published count 'positives/c' (1) cannot be compared",
    ]
    assert [line for line in result.stderr.splitlines() if line.startswith("warning")] == [
        f"warning: {text}" for text in report["warnings"]
    ]


def test_many_differing_counts_of_labels_take_a_few_lines():
    expected = {"train": 9, **{f"positives/{label}": 2 for label in "abcdefgh"}}
    here = dict.fromkeys("abcdefg", 1)

    lines = module.deviations(expected, {"train": 3}, here)

    assert lines == [
        "images in train: 3 here, 9 published",
        *(f"images with {label!r}: 1 here, 2 published" for label in "abcde"),
        "images with a label: 2 more labels differ from the published counts",
        "published count 'positives/h' (2) cannot be compared",
    ]
    assert module.deviations(expected, {"train": 9}, {"x": 1}) == ["8 published counts cannot be compared"]


def test_a_split_without_any_present_label_is_warned_of(fedmlic, photos):
    table = photos / "labels.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    blank = [[path, "" if split == "test" else labels, owner, split] for path, labels, owner, split in rows]
    table.write_text("\n".join(",".join(row) for row in blank) + "\n")
    wanted = "no label is present on any of the 5 test images as annotated: mAP is undefined there"

    for command in ("import", "check"):
        report = found(fedmlic(command, "folder", "--root", photos, "image-size=16", "--json"))
        assert wanted in report["warnings"], command
    assert module.blank_splits({"train": 2, "val": 0, "test": 1}, {"train": 0, "val": 0, "test": 4}) == [
        "no label is present on any of the 2 train images as annotated: nothing can be learned from them"
    ]


def spoil(photos):
    """Two images that cannot be decoded."""
    (photos / "img" / "03.png").write_bytes(b"")
    os.truncate(photos / "img" / "07.png", 400)


def test_bad_files_fail_all_at_once_and_can_be_left_out(fedmlic, photos):
    spoil(photos)
    arguments = ("import", "folder", "--root", photos, "image-size=16", "--max-bad-fraction", "0.1")
    failed = fedmlic(*arguments)
    skipped = fedmlic(*arguments, "--bad-files", "skip", "--json")
    report = found(skipped)

    assert failed.exit_code == 2
    assert "got 2 problems" in failed.stderr
    assert "img/03.png: Expected an image" in failed.stderr
    assert "--bad-files skip" in failed.stderr
    assert skipped.stderr.splitlines()[0] == "building folder: 20/20"
    assert "warning: 2 images could not be read and were left out" in skipped.stderr
    assert report["num_images"] == 18
    assert [entry["image"] for entry in report["bad_files"]] == ["img/03.png", "img/07.png"]
    assert load_corpus(report["corpus"]).manifest["report"]["bad_files"]["count"] == 2
    assert found(fedmlic(*arguments, "--bad-files", "skip", "--json")) == report


def test_labels_that_only_test_images_have_are_warned_of(fedmlic, photos):
    table = photos / "labels.csv"
    lines = table.read_text().splitlines()
    lines[4] = lines[4].replace(",dog,", ",late,").replace(",,", ",late,")
    assert lines[4].endswith("late,o3,test"), lines[4]
    table.write_text("\n".join(lines))
    line = "warning: 1 of 4 labels are present on test images but on no training image as annotated: 'late'."

    for command in ("import", "describe", "check"):
        result = fedmlic(command, "folder", "--root", photos, "image-size=8", "--json")

        assert line in result.stderr
        assert any("'late'" in warning for warning in found(result)["warnings"])


def test_more_bad_files_than_allowed_fail(fedmlic, photos):
    spoil(photos)
    result = fedmlic("import", "folder", "--root", photos, "image-size=16", "--bad-files", "skip")

    assert result.exit_code == 2
    assert "Expected at most 1.00% of 20 images" in result.stderr


def test_equal_images_are_counted(fedmlic, photos):
    (photos / "img" / "05.png").write_bytes((photos / "img" / "02.png").read_bytes())
    result = fedmlic("import", "folder", "--root", photos, "image-size=16", "--json")
    report = found(result)

    assert report["num_duplicates"] == 2
    assert report["report"]["duplicates"]["examples"] in (
        [["img/05.png", "img/02.png"]],
        [["img/02.png", "img/05.png"]],
    )
    assert "2 images in 1 groups have equal pixels; 1 of the groups span splits" in result.stderr


SLOW = """
import sys, time
from fedmlic import images, pixels
from sim.command import main
pixels.CHECKPOINT_S, pixels.BLOCK_IMAGES = 0.0, 1
decode = images.decode
def slow(*args, **options):
    time.sleep(0.15)
    return decode(*args, **options)
from fedmlic.datasets import folder
folder.decode = slow
main()
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_import_goes_on_to_the_same_bytes(fedmlic, photos, tmp_path, sign):
    whole = found(fedmlic("import", "folder", "--root", photos, "image-size=16", "--out", tmp_path / "a", "--json"))
    arguments = ["data", "import", "folder", "--root", str(photos), "image-size=16", "--out", str(tmp_path / "b")]
    environment = {**os.environ, "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 60
        journal = tmp_path / ".b.tmp" / "journal.json"
        while time.monotonic() < deadline and not (journal.is_file() and json.loads(journal.read_text())["done"] > 3):
            time.sleep(0.02)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
    done = json.loads(journal.read_text())["done"]
    lines = fedmlic(*arguments[1:]).stderr.splitlines()

    assert 3 < done < 20
    assert process.returncode == (-9 if sign == signal.SIGKILL else 130)
    assert sign == signal.SIGKILL or "the same command goes on" in errors
    assert lines[0] == f"building folder: {done}/20"
    assert digests(tmp_path / "b") == digests(whole["corpus"])
    assert not (tmp_path / ".b.tmp").exists()


# Check


def test_a_good_download_is_fine(fedmlic, photos):
    (photos / "img" / "unused.jpg").write_bytes(b"not looked at")
    result = fedmlic("check", "folder", "--root", photos, "--json")
    report = found(result)

    assert (report["ok"], report["problems"], report["extra_files"]) == (True, [], 1)
    assert report["modes"] == {"RGB": 20}
    assert report["splits"] == {"train": 10, "val": 5, "test": 5}
    assert (report["num_images"], report["num_labels"], report["num_owners"]) == (20, 3, 4)
    assert not (photos.parent / "home").exists()
    assert "no problem found" in fedmlic("check", "folder", "--root", photos).stdout


def test_everything_wrong_with_the_images_is_listed(fedmlic, photos):
    spoil(photos)
    turned = Image.new("RGB", (30, 10), (1, 2, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(photos / "img" / "turned.jpg", exif=exif)
    for mode in ("L", "CMYK"):
        Image.new(mode, (9, 9)).save(photos / "img" / f"{mode}.jpg")
    Image.fromarray(np.full((9, 9), 300, np.uint16)).save(photos / "img" / "deep.png")
    with (photos / "labels.csv").open("a") as file:
        file.write("".join(f"img/{name},cat,o1,train\n" for name in ("turned.jpg", "L.jpg", "CMYK.jpg", "deep.png")))

    result = fedmlic("check", "folder", "--root", photos, "image-size=16", "--json")
    report = json.loads(result.stdout)

    assert result.exit_code == 1
    assert (report["ok"], report["num_problems"], report["num_undecodable"], report["num_missing"]) == (False, 2, 2, 0)
    assert sorted(Path(text.split(": ")[0]).name for text in report["problems"]) == ["03.png", "07.png"]
    assert report["modes"] == {"CMYK": 1, "I;16": 1, "L": 1, "RGB": 20}
    assert report["exif_turned"] == 1
    plain = fedmlic("check", "folder", "--root", photos, "image-size=16")
    assert plain.exit_code == 1
    assert "2 problems:" in plain.stdout
    assert "Exit" not in plain.stderr


def test_wrong_tables_and_broken_images_are_listed_at_once(fedmlic, photos):
    spoil(photos)
    with (photos / "labels.csv").open("a") as file:
        file.write("img/gone.png,cat,o1,train\nimg/00.png,cat,o1,trian\n")

    result = fedmlic("check", "folder", "--root", photos, "--json")
    report = json.loads(result.stdout)

    assert result.exit_code == 1
    text = "\n".join(report["problems"])
    for expected in ("no image 'img/gone.png'", "'img/00.png' appears 2 times", "split 'trian'", "03.png", "07.png"):
        assert expected in text
    assert (report["num_problems"], report["num_undecodable"]) == (6, 2)


def test_more_than_ten_problems_are_counted_and_json_has_all(fedmlic, photos):
    for number in range(12):
        (photos / "img" / f"{number:02}.png").write_bytes(b"")

    assert "... and 2 more (--json has all)" in fedmlic("check", "folder", "--root", photos).stdout
    assert len(json.loads(fedmlic("check", "folder", "--root", photos, "--json").stdout)["problems"]) == 12


def test_check_compares_published_counts_softly(fedmlic, plug):
    plug("shelf", PLUG)
    report = found(fedmlic("check", "shelf.rows", "--json"))

    assert report["ok"]
    assert report["warnings"][0] == "images in train: 6 here, 9 published"
    assert report["published"]["positives/a"] == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["foldr", "--root", "photos"],
        ["folder", "--root", "nowhere"],
        ["folder", "--root", "photos", "image-sise=3"],
        ["folder", "--root", "photos", "image-size=4"],
        ["folder", "--root", "photos", "channels='blue'"],
    ],
)
@pytest.mark.usefixtures("photos")
def test_wrong_check_commands_are_not_problems_of_the_download(fedmlic, arguments):
    one_line(fedmlic("check", *arguments))


# Describe

NAMES = ("cat", "dog", "car", "no $ car", "never")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus with everything: four states, flags, boxes, owners, a hierarchy, a label that never is present."""
    rng = np.random.default_rng(5)
    labels = rng.choice(np.array([1, 0, -1, -2], np.int8), (300, 5), p=[0.3, 0.5, 0.15, 0.05])
    labels[:, 1] = np.where(rng.random(300) < 0.8, labels[:, 0], labels[:, 1])
    labels[:, 4] = 0
    row, label = np.nonzero(labels == 1)
    boxes = np.tile(np.array([2, 3, 10, 9], np.float32), (len(row), 1))
    objects = Objects(row, label.astype(np.int16), boxes, np.full(len(row), 90, np.float32))
    flags = Flags(
        row, label.astype(np.int16), np.where(row % 3, DIFFICULT_ONLY, DIFFICULT_ONLY | MACHINE).astype(np.uint8)
    )
    owners = np.unique(rng.zipf(1.5, 300) % 20, return_inverse=True)[1] - 1
    splits = rng.choice(["train", "val", "test"], 300, p=[0.7, 0.1, 0.2]).tolist()
    table = Table([f"i{n:03}" for n in range(300)], splits, labels, owners, objects, flags=flags)
    pixels = rng.integers(0, 255, (300, 24, 24, 1)).astype(np.uint8)
    dataset = Dataset(
        "made",
        "1",
        {},
        NAMES,
        (24, 24, 1),
        lambda: table,
        lambda row: pixels[row],
        parents=("pet", "pet", "x", "x", "x"),
    )
    return open_corpus(dataset, out=tmp_path_factory.mktemp("corpora") / "made")


@pytest.fixture(scope="module")
def truth(corpus):
    return corpus.labels.take(np.arange(300)).astype(int)


def test_label_counts_are_those_of_the_matrix(corpus, truth, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 64)
    report = data_report.describe_corpus(corpus)

    for label, row in enumerate(report["labels"]):
        column = truth[:, label]
        assert row["label"] == NAMES[label]
        assert row["positives"] == (column == 1).sum()
        assert row["known"] == (column >= 0).sum()
        assert row["prevalence"] == pytest.approx((column == 1).sum() / (column >= 0).sum())
        assert (row["unknown"], row["uncertain"]) == ((column == -1).sum(), (column == -2).sum())
        assert row["difficult_only"] == (column == 1).sum()
        for split, span in corpus.splits.items():
            assert row[f"positives_{split}"] == (column[span.start : span.stop] == 1).sum()
    assert [row["parent"] for row in report["labels"]] == ["pet", "pet", "x", "x", "x"]
    assert sum(row["machine"] for row in report["labels"]) == (corpus.flags.bits > DIFFICULT_ONLY).sum() > 0
    assert report["num_objects"] == (truth == 1).sum()
    json.dumps(report, allow_nan=False)


def test_cardinality_counts_every_image(corpus, truth):
    cardinality = data_report.describe_corpus(corpus)["cardinality"]
    present = (truth == 1).sum(axis=1)

    assert cardinality["mean"] == pytest.approx(present.mean())
    assert cardinality["max"] == present.max()
    assert cardinality["without_positives"] == (present == 0).sum()
    assert np.sum(list(cardinality["histogram"].values()), axis=0).tolist() == np.bincount(present).tolist()


def test_phi_is_the_correlation_over_images_on_which_both_are_known(corpus, truth, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 64)
    report = data_report.describe_corpus(corpus)
    pairs = {frozenset(pair["labels"]): pair for pair in report["pairs"] + report["avoiding"]}

    for first, second in itertools.combinations(range(4), 2):
        both = (truth[:, first] >= 0) & (truth[:, second] >= 0)
        expected = matthews_corrcoef(truth[both, first], truth[both, second])
        pair = pairs[frozenset((NAMES[first], NAMES[second]))]
        assert pair["phi"] == pytest.approx(expected)
        assert pair["images_with_both"] == ((truth[:, first] == 1) & (truth[:, second] == 1)).sum()
    assert set(report["pairs"][0]["labels"]) == {"cat", "dog"}
    values = [pair["phi"] for pair in report["pairs"]]
    assert values == sorted(values, reverse=True)
    assert not any("never" in pair["labels"] for pair in pairs.values())


def test_phi_where_every_entry_is_known(tmp_path):
    labels = (np.random.default_rng(2).random((90, 4)) < [0.5, 0.3, 0.2, 0.7]).astype(np.int8)
    table = Table([f"{n}" for n in range(90)], ["train"] * 90, labels, np.full(90, -1))
    corpus = open_corpus(Dataset("full", "1", {}, tuple("abcd"), (8, 8, 3), lambda: table, _pixels), out=tmp_path / "c")
    pairs = portraits.count_pairs(corpus, module.state_counts(corpus))

    for first, second in itertools.permutations(range(4), 2):
        expected = matthews_corrcoef(labels[:, pairs.labels[first]], labels[:, pairs.labels[second]])
        assert pairs.phi[first, second] == pytest.approx(expected)


def test_owner_sizes(corpus):
    owners = data_report.describe_corpus(corpus)["owners"]
    sizes = [int((corpus.owners == owner).sum()) for owner in set(corpus.owners.tolist()) - {-1}]

    assert owners["owners"] == len(sizes)
    assert owners["images_without_owner"] == (corpus.owners == -1).sum() > 0
    assert owners["images_per_owner"]["max"] == max(sizes)
    assert owners["images_per_owner"]["median"] == np.median(sizes)


def test_pictures_and_tables_are_written(fedmlic, corpus, tmp_path):
    report = found(fedmlic("describe", corpus.path, "--out", tmp_path / "out", "--json"))

    pictures = {"labels.png", "cooccurrence.png", "owners.png", "samples.png"}
    assert {Path(path).name for path in report["files"]} == pictures | {"labels.csv", "pairs.csv", "summary.json"}
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    with (tmp_path / "out" / "labels.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == list(NAMES)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {
        key: value for key, value in report.items() if key != "schema"
    }


def test_tables_are_printed(fedmlic, corpus):
    text = fedmlic("describe", corpus.path).stdout

    for expected in ("made (version 1)", "no $ car", "difficult only", "Labels that occur together", "cat + dog"):
        assert expected in text
    assert "not exhaustive" not in text


def test_a_data_set_is_described_by_name_and_built_if_it_is_not_there(fedmlic, photos):
    report = found(fedmlic("describe", "folder", "--root", photos, "image-size=16", "--json"))

    assert report["num_images"] == 20
    assert Path(report["corpus"]).is_dir()
    assert report["files"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere"], "Expected a corpus folder, got nothing"),
        (["nowhere"], "Expected dataset to name an entry"),
        (["photos/img"], "to be a complete corpus"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_what_cannot_be_described_is_one_line(fedmlic, arguments, message):
    assert message in one_line(fedmlic("describe", *arguments))


def test_a_corpus_folder_takes_no_options(fedmlic, corpus):
    assert "Expected no options with a corpus folder" in one_line(fedmlic("describe", corpus.path, "image-size=8"))


# Pictures


def test_samples_show_every_label_and_differ(corpus, truth):
    portrait = portraits.measure(corpus)
    rows = data_pictures.choose_samples(corpus, portrait, 24)

    assert len(set(rows.tolist())) == 24
    assert (truth[rows] == 1).any(axis=0).tolist() == [True, True, True, True, False]
    assert data_pictures.choose_samples(corpus, portrait, 24).tolist() == rows.tolist()
    assert len(data_pictures.choose_samples(corpus, portrait, 1000)) == 300


def test_the_sheet_shows_every_sample_with_its_labels_and_boxes(corpus, truth):
    portrait = portraits.measure(corpus)
    rows = data_pictures.choose_samples(corpus, portrait, 24)
    axes = data_pictures._samples_figure(corpus, portrait).axes

    assert len(axes) == 24
    for axis, row in zip(axes, rows.tolist(), strict=True):
        texts = [text.get_text() for text in axis.texts]
        present = np.flatnonzero(truth[row] == 1)
        for label in present:
            assert texts.count(NAMES[label]) == 2  # at its box and below the image
        assert len(axis.patches) == len(present)
        assert corpus.image_ids[row] in axis.get_title()
        unknown = (truth[row] == -1).sum()
        assert any(f"{unknown} unknown" in text for text in texts) == bool(unknown)


def test_what_does_not_fit_below_an_image_is_counted():
    chips = [(f"label number {number}", "C0") for number in range(40)]
    lines = data_pictures._fill_lines(chips, "9 unknown")
    shown = sum(len(line) for line in lines) - 1

    assert len(lines) <= data_pictures.CHIP_LINES
    assert lines[-1][-1][0] == f"+{40 - shown} more, 9 unknown"


def test_the_chain_keeps_labels_that_occur_together_side_by_side():
    phi = np.full((4, 4), -0.1)
    for first, second in ((0, 3), (3, 1), (1, 2)):
        phi[first, second] = phi[second, first] = 0.9
    np.fill_diagonal(phi, np.nan)

    assert data_pictures.chain(phi).tolist() == [0, 3, 1, 2]
    assert data_pictures.chain(np.empty((0, 0))).tolist() == []


@pytest.mark.parametrize("num_labels", [60, 0])
def test_many_labels_and_none_at_all_are_drawn(tmp_path, num_labels):
    rng = np.random.default_rng(0)
    labels = (rng.random((30, num_labels)) < 0.1).astype(np.int8)
    table = Table([f"{n}" for n in range(30)], ["train"] * 30, labels, np.full(30, -1))
    names = tuple(f"label {n}" for n in range(num_labels))
    dataset = Dataset("many", "1", {"n": num_labels}, names, (8, 8, 3), lambda: table, _pixels)
    corpus = open_corpus(dataset, out=tmp_path / "corpus")

    figures = data_pictures.draw(corpus, portraits.measure(corpus))

    assert set(figures) == {"labels.png", "samples.png", *(["cooccurrence.png"] if num_labels else [])}
    for figure in figures.values():
        figure.savefig(io.BytesIO(), dpi=30)


def _pixels(row):
    return np.full((8, 8, 3), row * 2, np.uint8)


def test_a_damaged_slice_is_found_where_the_table_is_wrong_too(tmp_path):
    runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "rsna_ich.py"))["write"](tmp_path)
    table = tmp_path / "stage_2_train.csv"
    table.write_text(table.read_text().replace("any,1", "any,7", 1))
    (tmp_path / "stage_2_train" / "ID_f00000000.dcm").write_bytes(b"no slice")

    report = check_data(module.read_source("rsna_ich", tmp_path, {}))

    assert report["num_undecodable"] == 1
    assert any("label '7' on 1 lines" in problem for problem in report["problems"])
    assert any("ID_f00000000.dcm: Expected an undamaged DICOM file" in problem for problem in report["problems"])


def test_warnings_of_a_source_are_shown(tmp_path):
    fixture = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "chestxray14.py"))
    fixture["tree"](tmp_path, [row.replace(",61,", ",412,") for row in fixture["ROWS"]])

    assert (
        "1 images of patients who are 120 years old or more"
        in check_data(module.read_source("chestxray14", tmp_path, {"image_size": 16}))["warnings"]
    )


# Verify


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_verify_reads_every_byte_and_names_damaged_images(fedmlic, photos):
    path = Path(found(fedmlic("import", "folder", "--root", photos, "image-size=16", "--json"))["corpus"])
    good = found(fedmlic("verify", path, "--json"))
    assert (good["ok"], good["problems"], good["hashes_added"]) == (True, [], False)
    assert good["bytes"] == sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.json")
    assert found(fedmlic("verify", "folder", "--root", photos, "image-size=16", "--json"))["folder"] == str(path)
    ids = json.loads((path / "image_ids.json").read_text())

    flip(path / "images.u8.npy", -16 * 16 * 3 - 1)  # the last image but one
    flip(path / "owners.npy")
    result = fedmlic("verify", path, "--json")

    assert result.exit_code == 1
    bad = json.loads(result.stdout)
    assert bad["problems"] == [f"{n} was changed after it was written" for n in ("images.u8.npy", "owners.npy")]
    assert bad["damaged_images"] == [ids[-2]]
    shown = fedmlic("verify", path)
    assert f"damaged image: {ids[-2]}" in shown.stdout
    assert "Delete that folder to have it built again" in shown.stdout
    os.truncate(path / "images.u8.npy", 100)
    assert "images.u8.npy has 100 bytes where" in fedmlic("verify", path).stdout
    (path / "owners.npy").unlink()
    assert "owners.npy cannot be read" in fedmlic("verify", path).stdout


def test_verify_gives_a_corpus_of_an_earlier_version_its_hashes(fedmlic, photos):
    path = Path(found(fedmlic("import", "folder", "--root", photos, "image-size=16", "--json"))["corpus"])
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"], manifest["files"]["images.hashes.npy"]
    (path / "images.hashes.npy").unlink()
    (path / "manifest.json").write_text(json.dumps(manifest))

    assert found(fedmlic("verify", path, "--json"))["hashes_added"]
    assert not found(fedmlic("verify", path, "--json"))["hashes_added"]
    assert load_corpus(path).images.hashed


def test_verify_takes_a_federation_too(fedmlic, photos, tmp_path):
    corpus = open_corpus(build("dataset", f"folder(root={str(photos)!r}, image_size=16)"), home=tmp_path)
    settings = {"partition": "iid()", "regime": "complete()", "num_clients": 2, "seed": 0, "holdout_fraction": 0.1}
    path = build_federation(corpus, home=tmp_path, **settings).path
    assert found(fedmlic("verify", path, "--json"))["ok"]

    flip(path / "train.labels.i8.npy")
    result = fedmlic("verify", path, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"] == ["train.labels.i8.npy was changed after it was written"]


def test_verify_of_something_else_is_one_line(fedmlic, tmp_path):
    (tmp_path / "manifest.json").write_text("[]")

    assert "to be a corpus, a federation or feature maps" in one_line(fedmlic("verify", tmp_path))

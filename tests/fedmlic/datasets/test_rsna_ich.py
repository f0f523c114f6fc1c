import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.corpus import open_corpus
from fedmlic.datasets.rsna_ich import rsna_ich
from fedmlic.errors import InputError
from fedmlic.formats import rsna_labels
from fedmlic.problems import Problems
from fedmlic.spec import build

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "rsna_ich.py"))
tree, exported, lines, slice_file, noise, LABELS, PATIENTS, KINDS = (
    FIXTURE[name] for name in ("tree", "exported", "lines", "slice_file", "noise", "LABELS", "PATIENTS", "KINDS")
)


def made(root, **options):
    return rsna_ich(root=str(root), **{"image_size": 24, **options})


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        made(root, **options).table()
    return str(caught.value)


def labels_of(data):
    table = data.table()
    return dict(zip(table.image_ids, map(tuple, table.labels.tolist()), strict=True))


def single(root, values, **tags):
    """A data set of one slice with these stored values."""
    (root / "stage_2_train").mkdir()
    slice_file(root / "stage_2_train" / "ID_f00000000.dcm", values, "ID_a", **tags)
    (root / "stage_2_train.csv").write_text("\n".join(["ID,Label", *lines({"ID_f00000000": (0,) * 5})]))
    return root


@pytest.fixture
def root(tmp_path):
    tree(tmp_path)
    return tmp_path


# Labels


def test_labels_are_those_of_the_shuffled_lines(root):
    data = made(root)

    assert data.label_names == KINDS[:5]
    assert labels_of(data) == LABELS
    assert data.table().report["repeated_lines"] == 6


def test_any_is_the_union(root):
    data = made(root, any_label=True)

    assert data.label_names == KINDS
    assert labels_of(data) == {image_id: (*states, max(states)) for image_id, states in LABELS.items()}


@settings(max_examples=20, deadline=None)
@given(
    states=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_the_order_of_lines_does_not_matter(tmp_path_factory, states, seed):
    root = tmp_path_factory.mktemp("lines")
    labels = {f"ID_{number:09x}": tuple(row) for number, row in enumerate(states)}
    (root / "t.csv").write_text("\n".join(["ID,Label", *lines(labels, seed)]))

    problems = Problems("Expected all")
    told = rsna_labels.read(root / "t.csv", problems)

    assert not problems

    assert dict(zip(told.image_ids, map(tuple, told.states[:, :5].tolist()), strict=True)) == labels
    assert told.states[:, 5].tolist() == [max(row) for row in states]
    assert told.repeated == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace(",1", ",1.0").replace(",0", ",0.0").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
    ],
    ids=["byte order mark", "CRLF", "no final newline", "decimals", "blank lines"],
)
def test_however_the_table_is_written_it_reads_the_same(root, change):
    path = root / "stage_2_train.csv"
    path.write_bytes(change(path.read_text()))

    assert labels_of(made(root)) == LABELS


def test_everything_wrong_is_told_at_once(root):
    text = (root / "stage_2_train.csv").read_text()
    for old, new in (
        ("ID_f00000001_any,1", "ID_f00000001_any,0"),
        ("ID_f00000002_epidural,0", "ID_f00000002_epidurall,0"),
        ("ID_f00000003_subdural,0", "ID_f00000003_subdural,2"),
        ("ID_f00000005_any,1", "ID_f00000005_any,1\nID_f00000005_any,0"),
    ):
        assert old in text
        text = text.replace(old, new)
    (root / "stage_2_train.csv").write_text(text + "ID,1\n" + "\n".join(lines({"ID_none": (0,) * 5})))
    (root / "stage_2_train" / "ID_f00000004.dcm").unlink()

    message = problem(root)

    for line in (
        "'ID', which names no image and subtype",
        "subtype 'epidurall' on 1 lines. Did you mean 'epidural'?",
        "label '2' on 1 lines. Known: 0, 0.0, 1, 1.0.",
        "ID_f00000001: any is 0, which is not the union of the subtypes",
        "ID_f00000002: nothing about epidural",
        "ID_f00000003: nothing about subdural",
        "ID_f00000005: both 0 and 1 for any",
        "no image 'ID_f00000004'",
        "no image 'ID_none'",
    ):
        assert line in message
    assert "got 9 problems" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Label\n", "to hold labels below its header, got none"),
        ("Image Index,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\n", "got none"),
        ("ID,Label\nID,0\n", "entry 1: 'ID', which names no image and subtype"),
        ("ID,Target\nID_1_any,0\n", "to have the columns ID and Label"),
        ("ID,Label\nID_1_any,0,7\n", "to have one cell for each of 2 columns, got line 2: 3 cells"),
        ("Image Index,epidural\nID_1.png,0\n", "'intraparenchymal' 0 times"),
    ],
)
def test_a_broken_table_is_explained(root, text, message):
    (root / "stage_2_train.csv").write_text(text)

    assert message in problem(root)


# Patients


def test_patients_come_from_the_headers(root):
    table = made(root).table()

    assert table.owner_names == ["ID_a", "ID_b", "ID_c", "ID_d"]
    assert [table.owner_names[owner] for owner in table.owners] == [PATIENTS[i] for i in table.image_ids]
    studies = made(root, owners="study").table()
    assert studies.owner_names == [f"1.2.{number}" for number in range(8)]


@settings(max_examples=25, deadline=None)
@given(
    patients=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.4)),
    seed=st.integers(0, 5),
    owners=st.sampled_from(["patient", "study"]),
)
def test_patients_never_cross_splits(tmp_path_factory, patients, shares, seed, owners):
    root = tmp_path_factory.mktemp("ich")
    of = {f"ID_{number:09x}": patient for number, patient in enumerate(patients)}
    exported(root, dict.fromkeys(of, (0,) * 5), patients=of)

    table = made(
        root,
        images="png",
        metadata="metadata.csv",
        val_fraction=shares[0],
        test_fraction=shares[1],
        seed=seed,
        owners=owners,
    ).table()

    sides = {}
    for image_id, side in zip(table.image_ids, table.splits, strict=True):
        sides.setdefault(of[image_id], set()).add(side)
    assert all(len(side) == 1 for side in sides.values())


def test_slices_without_patients_must_be_asked_for(tmp_path):
    exported(tmp_path)

    assert "got exported files and no metadata" in problem(tmp_path, images="png")
    table = made(tmp_path, images="png", split_by="slice", test_fraction=0.3, val_fraction=0.1).table()
    assert set(table.owners.tolist()) == {-1}
    assert [table.splits.count(split) for split in ("train", "val", "test")] == [6, 1, 3]
    with_owners = made(tmp_path, images="png", split_by="slice", metadata="metadata.csv").table()
    assert with_owners.owner_names == ["ID_a", "ID_b", "ID_c", "ID_d"]


def test_images_without_a_patient_are_told_at_once(root):
    for image_id in ("ID_f00000002", "ID_f00000006"):
        slice_file(root / "stage_2_train" / f"{image_id}.dcm", noise(1), "")

    message = problem(root)

    assert "stage_2_train to name the patient of every image, got 2 problems" in message
    assert "ID_f00000006: no patient" in message


def test_warnings_of_pydicom_are_one(root):
    """The published files name studies by ids that the standard does not allow."""
    for place, image_id in enumerate(LABELS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slice_file(root / "stage_2_train" / f"{image_id}.dcm", noise(1), PATIENTS[image_id], f"ID_{place:x}")

    (line,) = made(root).table().report["warnings"]

    assert line.startswith("pydicom warned 10 times about headers of the images, first: Invalid value for VR UI")


@pytest.mark.parametrize("tags", [{"RescaleIntercept": None}, {"RescaleSlope": None}, {"RescaleSlope": "0"}])
def test_without_slope_and_intercept_there_are_no_hounsfield_units(root, tags):
    slice_file(root / "stage_2_train" / "ID_f00000000.dcm", noise(1), "ID_a", **tags)
    data = made(root)

    with pytest.raises(InputError, match="turn stored values into Hounsfield units"):
        data.image(data.table().image_ids.index("ID_f00000000"))


def test_faults_of_all_files_are_told_at_once(root):
    (root / "stage_2_train.csv").write_text((root / "stage_2_train.csv").read_text().replace("any,1", "any,1,0", 1))
    slice_file(root / "stage_2_train" / "ID_f00000002.dcm", noise(1), "")
    (root / "stage_2_train" / "ID_f00000003.dcm").unlink()

    message = problem(root)
    assert "3 cells, where the header names 2" in message
    assert "ID_f00000002: no patient" in message
    assert "no image 'ID_f00000003'" in message

    message = problem(root, metadata="nothing.csv")
    assert "3 cells, where the header names 2" in message
    assert "Expected a table at" in message
    assert "nothing.csv" in message


def test_windows_are_finite(root):
    assert "each wider than 0" in problem(root, windows=[(float("nan"), 1), (0, float("inf")), (0, 1)])


def test_a_table_of_metadata_replaces_the_headers(root):
    rows = [f"{image_id}.dcm,{patient}x" for image_id, patient in PATIENTS.items()]
    (root / "m.csv").write_text("\n".join(["filename,PatientID", *rows]))
    assert made(root, metadata="m.csv").table().owner_names == ["ID_ax", "ID_bx", "ID_cx", "ID_dx"]

    (root / "m.csv").write_text("\n".join(["ID,PatientID", *rows[1:], rows[1].replace("bx", "ax")]))
    assert "ID_f00000001 belongs to ID_bx and to ID_ax" in problem(root, metadata="m.csv")
    (root / "m.csv").write_text("\n".join(["ID,PatientID", *rows[1:]]))
    assert "ID_f00000000: no patient" in problem(root, metadata="m.csv")


# Which images


def test_the_folders_of_both_stages_and_mirrors(tmp_path_factory):
    for folder, table in (("stage_2_train_images", "stage_2_train.csv"), ("stage_1_train_images", "stage_1_train.csv")):
        root = tmp_path_factory.mktemp("stage")
        tree(root, folder=folder, table=table)
        assert labels_of(made(root)) == LABELS
    root = tmp_path_factory.mktemp("other")
    tree(root, folder="slices")
    (root / "masks").mkdir()
    assert labels_of(made(root)) == labels_of(made(root, images="slices")) == LABELS
    assert "a folder slcies, got masks, slices. Name it as images=" in problem(root, images="slcies")
    exported(root)
    assert "got masks, png, slices. Name it as images=" in problem(root)


def test_the_corrupt_image_is_left_out_and_counted(root):
    with (root / "stage_2_train.csv").open("a") as file:
        file.write("\n".join(lines({"ID_6431af929": (1, 0, 0, 0, 0)})[:12]))
    (root / "stage_2_train" / "ID_6431af929.dcm").write_bytes(b"damaged")

    data = made(root)

    assert labels_of(data) == LABELS
    assert data.table().report["left_out"]["excluded"] == 1
    assert "ID_6431af929.dcm" in problem(root, exclude=[])
    assert len(made(root, exclude=["ID_6431af929", "ID_f00000000"]).table().image_ids) == 9


def test_an_export_of_some_images_as_in_fedmlp(tmp_path):
    some = {image_id: states for image_id, states in LABELS.items() if max(states)}
    exported(tmp_path, some, patients={image_id: PATIENTS[image_id] for image_id in some})
    (tmp_path / "stage_2_train.csv").write_text("\n".join(["ID,Label", *lines()]))

    data = made(tmp_path, images="png", metadata="metadata.csv", missing="leave_out")

    assert "no image 'ID_f00000000'" in problem(tmp_path, images="png", metadata="metadata.csv")
    assert labels_of(data) == some
    assert data.table().report["left_out"]["no_file"] == len(LABELS) - len(some)


def test_the_derived_table_with_a_column_per_subtype(tmp_path):
    exported(tmp_path)
    rows = [",".join(map(str, [f"{image_id}.png", *states])) for image_id, states in LABELS.items()]
    (tmp_path / "wide.csv").write_text("\n".join([",".join(["Image Index", *KINDS[:5]]), *rows, rows[0]]))

    data = made(tmp_path, images="png", metadata="metadata.csv", csv="wide.csv", any_label=True)

    assert labels_of(data) == {image_id: (*states, max(states)) for image_id, states in LABELS.items()}
    contradiction = rows[0].removesuffix("0") + "1"
    (tmp_path / "wide.csv").write_text(
        "\n".join([",".join(["Image Index", *KINDS[:5]]), *rows, contradiction, "ID_x.png,1,1,1,1,2"])
    )
    message = problem(tmp_path, images="png", csv="wide.csv", split_by="slice")
    assert "line 12: ID_f00000000 again with other labels" in message
    assert "line 13: 'ID_x.png' with ['1', '1', '1', '1', '2'], which should be 0 or 1" in message


def test_files_of_two_kinds_are_a_problem(root):
    Image.new("L", (8, 8)).save(root / "stage_2_train" / "ID_f00000001.png")

    message = problem(root)

    assert "ID_f00000001 as .dcm and as .png" in message or "ID_f00000001 as .png and as .dcm" in message


# Pixels


def brute_window(hounsfield, centre, width):
    """A plain loop over pixels."""
    low = centre - width / 2
    grey = [[min(max((value - low) / width, 0), 1) * 255 for value in row] for row in hounsfield.tolist()]
    return np.rint(np.array(grey)).astype(int)


def test_three_windows_are_three_channels(root):
    data = made(root)
    hounsfield = noise(3) - 1024.0

    pixels = data.image(3).astype(int)

    for channel, (centre, width) in enumerate([(40, 80), (80, 200), (600, 2800)]):
        assert np.abs(pixels[..., channel] - brute_window(hounsfield, centre, width)).max() <= 1


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (None, [(40, 80)]),
        (["blood"], [(75, 215)]),
        (["header"], [(30, 80)]),
        ([(-600, 1500)], [(-600, 1500)]),
    ],
)
def test_one_window_is_one_channel(root, windows, expected):
    pixels = made(root, channels=1, windows=windows).image(0)

    assert pixels.shape == (24, 24, 1)
    assert np.abs(pixels[..., 0].astype(int) - brute_window(noise(0) - 1024.0, *expected[0])).max() <= 1


def test_windows_as_text(root):
    text = f"rsna_ich(root={str(root)!r}, windows=['brain', [75, 215], 'bone'], image_size=24)"

    assert build("dataset", text).identity["windows"] == [[40, 80], [75, 215], [600, 2800]]
    assert "3, one per channel" in problem(root, windows=["brain"])
    assert "each wider than 0" in problem(root, windows=["brain", "bone", (40, 0)])


def test_a_header_may_propose_several_windows_or_none(tmp_path_factory):
    several = single(tmp_path_factory.mktemp("several"), noise(0), WindowCenter=[36, 600], WindowWidth=[80, 2800])
    pixels = made(several, channels=1, windows=["header"]).image(0)[..., 0].astype(int)
    assert np.abs(pixels - brute_window(noise(0) - 1024.0, 36, 80)).max() <= 1

    none = single(tmp_path_factory.mktemp("none"), noise(0), WindowCenter=None, WindowWidth=None)
    with pytest.raises(InputError, match="header to propose a window, got none"):
        made(none, channels=1, windows=["header"]).image(0)


def test_the_wrong_intercept_is_undone(tmp_path):
    """12 unsigned bits with an intercept near 0: values were shifted by 1000 and wrapped at 4096."""
    true = noise(5) - 1000  # Hounsfield units -1000 to 199
    stored = np.where(true < 0, true + 4096, true)
    root = single(tmp_path, stored, BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleIntercept="0")

    fixed = made(root, channels=1, windows=["bone"]).image(0)[..., 0].astype(int)
    as_it_is = made(root, channels=1, windows=["bone"], fix_intercept=False).image(0)[..., 0].astype(int)

    assert np.abs(fixed - brute_window(true.astype(float), 600, 2800)).max() <= 1
    assert np.abs(as_it_is - brute_window(stored.astype(float), 600, 2800)).max() <= 1
    assert np.abs(fixed - as_it_is).max() > 200


def test_a_right_intercept_is_left_alone(tmp_path):
    root = single(tmp_path, noise(5), BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleIntercept="-1024")

    pixels = made(root, channels=1).image(0)[..., 0].astype(int)

    assert np.abs(pixels - brute_window(noise(5) - 1024.0, 40, 80)).max() <= 1


def test_slope(tmp_path):
    root = single(tmp_path, noise(5), RescaleSlope="2", RescaleIntercept="-1200")

    pixels = made(root, channels=1, windows=["bone"]).image(0)[..., 0].astype(int)

    assert np.abs(pixels - brute_window(noise(5) * 2 - 1200.0, 600, 2800)).max() <= 1


def test_exported_images_keep_their_own_pixels(tmp_path):
    exported(tmp_path)
    data = made(tmp_path, images="png", metadata="metadata.csv")
    with Image.open(tmp_path / "png" / "ID_f00000004.png") as picture:
        stored = np.asarray(picture)

    assert (data.image(4) == stored).all()
    assert data.table().report["modes"] == {"RGB": 10}


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "colours"])
def test_every_bad_slice_is_named(root, tmp_path_factory, damage):
    paths = [root / "stage_2_train" / f"ID_f0000000{number}.dcm" for number in (1, 2)]
    for path in paths:
        whole = path.read_bytes()
        if damage == "colours":
            slice_file(path, noise(1), "ID_a", PhotometricInterpretation="MONOCHROME1")
        else:
            path.write_bytes({"text": b"no DICOM", "empty": b"", "cut": whole[:-200]}[damage])

    with pytest.raises(InputError) as caught:
        open_corpus(made(root), home=tmp_path_factory.mktemp("home"))

    assert "got 2 problems" in str(caught.value)
    assert all(str(path) in str(caught.value) for path in paths)


def test_pydicom_is_needed_for_dicom_alone(root, tmp_path_factory, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    png = tmp_path_factory.mktemp("png")
    exported(png)

    assert len(made(png, images="png", metadata="metadata.csv").table().image_ids) == 10
    with pytest.raises(InputError, match=r"Run: pip install 'fedmlic\[dicom\]' \(in a checkout with uv: uv sync\)"):
        made(root).image(0)


def test_it_becomes_a_corpus_that_follows_its_options(root, tmp_path_factory):
    corpus = open_corpus(made(root), home=tmp_path_factory.mktemp("home"))

    assert corpus.num_images == 10
    assert corpus.owner_names == ["ID_a", "ID_b", "ID_c", "ID_d"]
    identities = [
        made(root, **options).identity
        for options in ({}, {"fix_intercept": False}, {"windows": ["brain", "blood", "bone"]}, {"seed": 1})
    ]
    assert all(identities[0] != other for other in identities[1:])
    assert pydicom.dcmread(root / "stage_2_train" / "ID_f00000000.dcm").PatientID == "ID_a"

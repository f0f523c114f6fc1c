import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedmlic.datasets.bigearthnet_s2 import NUM_V1, NUM_V2, POSITIVES_V2, SIDES, bigearthnet_s2
from fedmlic.errors import InputError
from fedmlic.formats.bigearthnet import CLASSES_19, CLASSES_43, GROUP_OF

FIXTURE = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "bigearthnet_s2.py"))
PATCHES_1, PATCHES_2, NATURAL = FIXTURE["PATCHES_1"], FIXTURE["PATCHES_2"], FIXTURE["NATURAL"]
HIDDEN = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both releases; nobody may change them."""
    roots = {"v1": tmp_path_factory.mktemp("v1"), "v2": tmp_path_factory.mktemp("v2")}
    FIXTURE["write_v1"](roots["v1"])
    FIXTURE["write"](roots["v2"])
    return roots


@pytest.fixture
def v1(tmp_path, written):
    return shutil.copytree(written["v1"], tmp_path / "v1")


@pytest.fixture
def v2(tmp_path, written):
    return shutil.copytree(written["v2"], tmp_path / "v2")


def rows_of(root, **options):
    """Patch -> (split, owner, names)."""
    data = bigearthnet_s2(root=str(root), **options)
    table = data.table()
    return {
        patch: (
            table.splits[row],
            table.owner_names[table.owners[row]] if table.owners[row] >= 0 else None,
            {data.label_names[column] for column in np.flatnonzero(table.labels[row])},
        )
        for row, patch in enumerate(table.image_ids)
    }


def problem(root, **options):
    with pytest.raises(InputError) as caught:
        bigearthnet_s2(root=str(root), **options).table()
    return str(caught.value)


def test_release_2_is_read_as_written(written):
    names = {"train": "train", "validation": "val", "test": "test"}
    by_hand = {
        patch: (names[split], country, set(labels))
        for patch, (split, labels, country, hidden) in PATCHES_2.items()
        if not hidden
    }

    assert rows_of(written["v2"]) == by_hand
    tiles = {patch: owner for patch, (_, owner, _) in rows_of(written["v2"], owners="tile").items()}
    assert tiles == {patch: patch.split("_T")[1][:5] for patch in by_hand}
    assert {owner for _, owner, _ in rows_of(written["v2"], owners="none").values()} == {None}


def test_release_2_with_snow_and_clouds(written):
    assert set(rows_of(written["v2"], snow_and_clouds="keep")) == set(PATCHES_2)


def test_marked_rows_of_one_table_are_left_out_and_counted(v2):
    FIXTURE["table"](PATCHES_2).to_parquet(v2 / "metadata.parquet")
    table = bigearthnet_s2(root=str(v2)).table()

    assert dict(table.report) == {"snow_dropped": 1, "cloud_dropped": 1, "missing_dropped": 0}
    assert len(table.image_ids) == len(PATCHES_2) - 2


def test_release_1_is_read_as_written(written):
    """Groups by hand: Intertidal flats, Bare rock and others belong to none of the 19."""
    groups = {
        "S2A_MSIL2A_20170613T101031_87_48": {"Arable land", NATURAL},
        "S2A_MSIL2A_20170617T113321_36_85": {"Pastures", "Arable land"},
        "S2A_MSIL2A_20170617T113321_4_55": {"Marine waters"},
        "S2B_MSIL2A_20170924T93020_69_24": {"Coniferous forest", "Inland wetlands", "Inland waters"},
        "S2A_MSIL2A_20171221T112501_56_35": {"Transitional woodland, shrub"},
    }
    listed = {patch: about for patch, about in PATCHES_1.items() if about[0]}

    assert rows_of(written["v1"]) == {
        patch: (split, tile[1:], groups[patch]) for patch, (split, _, tile) in listed.items()
    }
    assert rows_of(written["v1"], classes=43, owners="none") == {
        patch: (split, None, set(labels)) for patch, (split, labels, _) in listed.items()
    }
    report = bigearthnet_s2(root=str(written["v1"])).table().report
    assert report == {
        "in_no_list": 1,
        "snow_dropped": 0,
        "cloud_dropped": 0,
        "missing_dropped": 0,
        "without_class_dropped": 0,
    }


def test_release_1_without_what_the_lists_exclude(v1):
    lists = {
        "train.csv": "S2B_MSIL2A_20180204T94161_57_38",
        "patches_with_cloud_and_shadow.csv": "S2A_MSIL2A_20170613T101031_87_48",
    }
    for file, name in lists.items():
        with (v1 / file).open("a") as out:
            out.write(f"{name}\n")
    label_file(v1, "S2A_MSIL2A_20171221T112501_56_35").write_text(
        json.dumps({"labels": ["Bare rock", "Airports"], "tile_source": "S2A_T29SND_x"})
    )
    table = bigearthnet_s2(root=str(v1)).table()

    assert len(table.image_ids) == 3
    assert table.report["snow_dropped"] == table.report["cloud_dropped"] == table.report["without_class_dropped"] == 1
    assert len(rows_of(v1, snow_and_clouds="keep")) == 5
    assert len(rows_of(v1, classes=43)) == 4
    assert bigearthnet_s2(root=str(v1), classes=43).table().report["without_class_dropped"] == 0


def label_file(root, patch):
    return root / "BigEarthNet-v1.0" / patch / f"{patch}_labels_metadata.json"


def test_lists_may_name_sentinel_1_patches_too_and_have_other_names(v1):
    before = rows_of(v1)
    for split in ("train", "val", "test"):
        names = (v1 / f"{split}.csv").read_text().split()
        (v1 / f"{split}.csv").unlink()
        lines = [f"{name},S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39" for name in names]
        (v1 / f"bigearthnet-{split}.csv").write_bytes("\r\n".join(lines).encode())

    assert rows_of(v1) == before


def test_countries_of_release_1_come_from_the_tables_of_release_2(v1):
    assert "metadata.parquet" in problem(v1, owners="country")
    FIXTURE["write_tables"](v1)
    table = FIXTURE["table"](list(PATCHES_2)[:3])
    table["s2v1_name"] = list(PATCHES_1)[:3]
    table.to_parquet(v1 / "metadata.parquet")
    found = {patch: owner for patch, (_, owner, _) in rows_of(v1, release="v1", owners="country").items()}

    assert found == {
        **dict(zip(list(PATCHES_1)[:3], ["Austria", "Austria", "Ireland"], strict=True)),
        "S2B_MSIL2A_20170924T93020_69_24": None,
        "S2A_MSIL2A_20171221T112501_56_35": None,
    }
    report = bigearthnet_s2(root=str(v1), release="v1", owners="country").table().report
    assert report["without_country"] == 2


@pytest.mark.parametrize("bands", ["rgb", ["B08"], ["B12", "B8A", "B01"]])
def test_pixels_by_a_plain_loop(written, bands):
    """Every value is 255 at 2,000; bands of 20 and 60 m are enlarged like any image."""
    chosen = ["B04", "B03", "B02"] if bands == "rgb" else bands
    data = bigearthnet_s2(root=str(written["v2"]), bands=bands)
    patch = data.table().image_ids[0]
    by_hand = []
    for band in chosen:
        eight = np.array(
            [[min(round(v * 255 / 2000), 255) for v in line] for line in FIXTURE["values"](patch, band).tolist()]
        )
        large = Image.fromarray(eight.astype(np.uint8)).resize((120, 120), Image.Resampling.BILINEAR)
        by_hand.append(np.asarray(large))

    assert data.image_shape == (120, 120, len(chosen))
    assert (data.image(0) == np.stack(by_hand, axis=-1)).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 65535))
def test_the_largest_value_is_white_and_nothing_wraps_around(written, max_value):
    image = bigearthnet_s2(root=str(written["v2"]), bands=["B09"], image_size=20, max_value=max_value).image(0)[..., 0]
    patch = bigearthnet_s2(root=str(written["v2"]), bands=["B09"]).table().image_ids[0]
    values = FIXTURE["values"](patch, "B09")

    assert (image[values >= max_value] == 255).all()
    assert (np.diff(image.ravel()[np.argsort(values.ravel(), kind="stable")].astype(int)) >= 0).all()


def test_more_than_three_bands_are_refused(written):
    for bands, hint in (
        ("all", "1 or 3 channels"),
        (["B04", "B03"], "2 bands"),
        (["B10"], "'B10'"),
        (["B04"] * 3, "twice"),
    ):
        assert hint in problem(written["v2"], bands=bands)


def test_damaged_bands_are_named(v2):
    folder = next((v2 / "BigEarthNet-S2").glob("*T33UUP/*_26_57"))
    band = folder / f"{folder.name}_B03.tif"
    data = bigearthnet_s2(root=str(v2))
    row = data.table().image_ids.index(folder.name)
    for pixels in (
        np.zeros((60, 60), np.uint16),
        np.zeros((120, 120, 3), np.uint8),
        np.full((120, 120), 0.5, np.float32),
    ):
        Image.fromarray(pixels).save(band)
        with pytest.raises(InputError, match=r"_B03\.tif"):
            data.image(row)
    band.write_bytes(band.read_bytes()[:200])
    with pytest.raises(InputError, match=r"_B03\.tif"):
        data.image(row)
    band.write_bytes(b"")
    assert "_B03.tif: empty file" in problem(v2)
    band.unlink()
    assert "_B03.tif: no such file" in problem(v2, missing="drop")
    assert len(rows_of(v2, bands=["B08"])) == 5


def test_patches_that_are_not_there(written, v1, v2):
    shutil.rmtree(next((v2 / "BigEarthNet-S2").glob("*T33UUP/*_26_57")))
    shutil.rmtree(v1 / "BigEarthNet-v1.0" / "S2A_MSIL2A_20170617T113321_4_55")
    for root, left in ((v1, 4), (v2, 4)):
        assert "no such folder" in problem(root)
        data = bigearthnet_s2(root=str(root), missing="drop")
        assert len(data.table().image_ids) == left
        assert data.table().report["missing_dropped"] == 1
        assert "train" not in data.expected
    assert "train" in bigearthnet_s2(root=str(written["v2"])).expected


def test_the_tile_matters_where_it_is_the_owner(v1):
    patch = "S2A_MSIL2A_20170613T101031_87_48"
    label_file(v1, patch).write_text('{"labels": ["Pastures"]}')

    assert "tile_source None, which names no tile" in problem(v1)
    assert rows_of(v1, owners="none")[patch] == ("train", None, {"Pastures"})


def test_all_faults_of_release_1_at_once(v1):
    label_file(v1, "S2A_MSIL2A_20170613T101031_87_48").write_text('{"labels": ["Pasture"], "tile_source": "T33UUP"}')
    label_file(v1, "S2A_MSIL2A_20170617T113321_36_85").write_text('{"labels": [], "tile_source": "x_T29UPU_y"}')
    label_file(v1, "S2B_MSIL2A_20170924T93020_69_24").unlink()
    (v1 / "val.csv").write_text("S2B_MSIL2A_20170924T93020_69_24\n../x\nS2B_MSIL2A_20170924T93020_69_24\n")
    with (v1 / "test.csv").open("a") as out:
        out.write("S2A_MSIL2A_20170617T113321_4_55\nS2A_MSIL2A_20170617T113321_4_56\n")
    with pytest.raises(InputError) as caught:
        bigearthnet_s2(root=str(v1))
    found = "\n".join(caught.value.problems)

    for part in (
        "the label 'Pasture', none of the 43 classes. Did you mean 'Pastures'?",
        "tile_source 'T33UUP', which names no tile",
        "labels [], no list with a class",
        "S2B_MSIL2A_20170924T93020_69_24_labels_metadata.json, got none",
        "line 2: '../x' is a path",
        "line 3: S2B_MSIL2A_20170924T93020_69_24, which line 1 names too",
        "S2A_MSIL2A_20170617T113321_4_55 in train and in test",
        "S2A_MSIL2A_20170617T113321_4_56: no such folder",
    ):
        assert part in found


def test_all_faults_of_a_table_at_once(v2):
    table = pd.read_parquet(v2 / "metadata.parquet")
    table.loc[0, "patch_id"] = table.loc[1, "patch_id"] = "S2A_MSIL2A_20170613T101031_26_57"
    table.loc[2, "split"] = "val"
    table.loc[3, "country"] = None
    table["labels"] = [["Pasture"], [], *table["labels"][2:]]
    table.to_parquet(v2 / "metadata.parquet")
    message = problem(v2)

    for part in (
        "row 0: the label 'Pasture', none of the 19 classes. Did you mean 'Pastures'?",
        "row 1: labels",
        "row 2: split 'val' is none of train, validation, test",
        "row 3: country",
    ):
        assert part in message


def test_names_that_stand_twice_or_belong_to_another_release(v2):
    table = pd.read_parquet(v2 / "metadata.parquet")
    table.loc[0, "patch_id"] = "S2A_MSIL2A_20170613T101031_26_57"
    table.loc[1, "patch_id"] = table.loc[2, "patch_id"]
    table.to_parquet(v2 / "metadata.parquet")
    message = problem(v2)

    assert (
        "named like S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57, got 'S2A_MSIL2A_20170613T101031_26_57'"
        in message
    )
    assert f"{table.loc[2, 'patch_id']} appears 2 times" in message


def test_a_table_of_another_kind(v2):
    table = pd.read_parquet(v2 / "metadata.parquet")
    table.drop(columns="country").to_parquet(v2 / "metadata.parquet")
    assert "It needs the columns patch_id, split, country" in problem(v2)
    table["contains_seasonal_snow"] = "no"
    table.to_parquet(v2 / "metadata.parquet")
    assert "no booleans" in problem(v2)
    (v2 / "metadata.parquet").write_bytes(b"PAR1")
    assert "metadata.parquet" in problem(v2)
    (v2 / HIDDEN).unlink()
    assert HIDDEN in problem(v2, snow_and_clouds="keep")


def test_which_release(v1, v2):
    assert "list of train patches" in problem(v2, release="v1")
    assert "the folder of patches" in problem(v1, release="v2")
    assert "classes=19 with release 2.0" in problem(v2, classes=43)
    (v1 / "BigEarthNet-S2").mkdir()
    assert "Give release='v1' or release='v2'" in problem(v1)
    assert len(rows_of(v1, release="v1")) == 5


def test_what_the_identity_depends_on(v2):
    first = bigearthnet_s2(root=str(v2)).identity
    assert first == bigearthnet_s2(root=str(v2)).identity
    folder = next((v2 / "BigEarthNet-S2").glob("*T33UUP/*_26_57"))
    FIXTURE["write_band"](folder / f"{folder.name}_B12.tif", np.zeros((60, 60), np.uint16))
    assert bigearthnet_s2(root=str(v2)).identity == first
    FIXTURE["write_band"](folder / f"{folder.name}_B02.tif", np.zeros((120, 120), np.uint16))
    assert bigearthnet_s2(root=str(v2)).identity != first


def test_published_numbers():
    assert sum(NUM_V1.values()) == 519_284  # BEN_RECOMMENDED_SIZE of bigearthnet_common
    assert sum(sum(part.values()) for part in NUM_V2) == 549_488  # reBEN, abstract
    assert len(CLASSES_19) == 19 == len(POSITIVES_V2[0]) == len(POSITIVES_V2[1])
    assert len(CLASSES_43) == 43
    assert set(GROUP_OF.values()) - {""} == set(CLASSES_19)
    assert sum(not group for group in GROUP_OF.values()) == 11
    assert {band: FIXTURE["SIDES"][band] for band in SIDES} == SIDES

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.formats.bigearthnet import (
    CLASSES_43,
    PatchLabels,
    folder_of_patch,
    read_patch_labels,
    read_patch_list,
)
from fedmlic.problems import Problems

PATCH = st.builds(
    "S2{}_MSIL2A_20170613T{}_{}_{}".format, st.sampled_from("AB"), st.integers(0, 235959), *[st.integers(0, 90)] * 2
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(PATCH, min_size=1, max_size=5, unique=True),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", ",S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.booleans(),
)
def test_a_list_of_patches_in_any_form(tmp_path, names, end, second, mark, last):
    path = tmp_path / "train.csv"
    path.write_bytes(mark + (end.join(name + second for name in names) + end * last).encode())
    problems = Problems("Expected it")

    assert read_patch_list(path, problems) == names
    assert not problems


def test_an_empty_list_has_no_names(tmp_path):
    (tmp_path / "train.csv").write_text("\n")
    problems = Problems("Expected it")

    assert read_patch_list(tmp_path / "train.csv", problems) == []
    assert "no names" in problems.lines[0]


def test_labels_are_sorted_and_each_stands_once(tmp_path):
    path = tmp_path / "x.json"
    about = {"labels": ["Vineyards", "Airports", "Vineyards"], "tile_source": "S2A_MSIL1C_R080_T29UPU_2017.SAFE"}
    path.write_text(json.dumps(about))

    assert read_patch_labels(path) == PatchLabels(("Airports", "Vineyards"), "29UPU")
    assert read_patch_labels(path, with_tile=False) == PatchLabels(("Airports", "Vineyards"), "")


@pytest.mark.parametrize("labels", [None, [], "Airports", ["airports"], [None], [["Airports"]], {"Airports": 1}, 3])
def test_other_labels_are_refused(tmp_path, labels):
    (tmp_path / "x.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError, match="label"):
        read_patch_labels(tmp_path / "x.json", with_tile=False)


@pytest.mark.parametrize("content", ["", "[]", "3", "{", '{"labels": 1, "labels": 2}'])
def test_files_that_hold_no_object_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        read_patch_labels(tmp_path / "x.json")


def test_names_of_release_2():
    assert folder_of_patch("S2B_MSIL2A_20180204T094161_N9999_R036_T35VPK_57_38").endswith("_T35VPK")
    for name in ("S2A_MSIL2A_20170613T101031_26_57", "../S2B_MSIL2A_20180204T094161_N9999_R036_T35VPK_57_38", ""):
        with pytest.raises(InputError):
            folder_of_patch(name)
    assert len(set(CLASSES_43)) == 43

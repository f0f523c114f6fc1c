"""Damaged slices; what sound ones become is tested with the data set that has them."""

import numpy as np
import pytest

pytest.importorskip("pydicom")

from fedmlic.errors import InputError
from fedmlic.formats.dicom import hounsfield, origin
from tests.fixtures.rsna_ich import noise, slice_file


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of values that it cannot read
def test_damaged_bytes_give_values_or_an_input_error(tmp_path):
    slice_file(tmp_path / "sound.dcm", noise(0, 16), "p")
    sound, rng, refused = (tmp_path / "sound.dcm").read_bytes(), np.random.default_rng(0), 0
    damaged = tmp_path / "damaged.dcm"
    for _ in range(300):
        content = bytearray(sound)
        for place in rng.integers(128, len(content) - 512, rng.integers(1, 6)):
            content[place] = rng.integers(256)
        damaged.write_bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)
        for read in (origin, lambda path: hounsfield(path, fix_intercept=True)):
            try:
                read(damaged)
            except InputError:
                refused += 1
    assert refused > 20

import numpy as np
import pytest

from fedmlic.splits import held_out_counts, hold_out


@pytest.mark.parametrize("count", [1, 5, 15, 1909])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5])
def test_published_counts_are_divided_as_images_are(count, fraction):
    chosen = int(hold_out(np.arange(count), fraction, 0, "x").sum())

    assert held_out_counts(count, fraction) == {"train": count - chosen, "val": chosen}

"""Label-mask training: the distribution of what is revealed, and the loss, by loops and by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmlic.label_masking import masked_loss, reveal
from fedmlic.labels import ABSENT, PRESENT, UNCERTAIN, UNKNOWN

LABELS = hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-2, 1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(LABELS, st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
def test_what_is_revealed_is_known_and_never_everything(labels, fraction, seed):
    states = reveal(torch.from_numpy(labels), fraction, generator(seed)).numpy()

    assert states.dtype == np.int8
    for told, row in zip(states, labels, strict=True):
        shown = told != UNKNOWN
        num_known = int((row >= 0).sum())
        assert (told[shown] == row[shown]).all()
        assert (row[shown] >= 0).all()
        assert shown.sum() <= math.floor(num_known * fraction)
        if num_known:
            assert shown.sum() < num_known


@pytest.mark.parametrize("num_labels", [1, 4, 8, 10])
def test_complete_labels_reveal_a_uniform_number(num_labels):
    """C-Tran's rule: n ~ Uniform{0, ..., floor(0.75 C)}; 5 standard deviations allowed."""
    num_images = 40_000
    labels = torch.ones(num_images, num_labels, dtype=torch.int8)

    counts = Counter((reveal(labels, 0.75, generator(num_labels)) != UNKNOWN).sum(dim=1).tolist())

    values = math.floor(0.75 * num_labels) + 1
    share = 1 / values
    allowed = 5 * math.sqrt(num_images * share * (1 - share))
    assert sorted(counts) == list(range(values))
    assert all(abs(count - num_images * share) <= allowed for count in counts.values())


def test_all_sets_of_one_size_are_equally_likely():
    num_images = 60_000
    labels = torch.tensor([[PRESENT, UNKNOWN, ABSENT, PRESENT, ABSENT]], dtype=torch.int8).repeat(num_images, 1)

    revealed = (reveal(labels, 0.75, generator(1)) != UNKNOWN).tolist()

    sets = Counter(tuple(i for i, shown in enumerate(row) if shown) for row in revealed)
    for size, number in {0: 1, 1: 4, 2: 6, 3: 4}.items():
        share = 1 / 4 / number
        found = [count for chosen, count in sets.items() if len(chosen) == size]
        assert len(found) == number
        assert all(abs(c - num_images * share) <= 5 * math.sqrt(num_images * share) for c in found)


def test_images_are_drawn_independently():
    labels = torch.ones(20_000, 4, dtype=torch.int8)

    numbers = (reveal(labels, 0.75, generator(2)) != UNKNOWN).sum(dim=1).double()

    correlation = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(len(numbers))


def test_single_known_labels_are_never_revealed():
    labels = torch.tensor([[UNKNOWN, PRESENT, UNCERTAIN]] * 500, dtype=torch.int8)

    assert (reveal(labels, 0.99, generator()) == UNKNOWN).all()


def test_revealing_replays_from_its_generator():
    labels = torch.ones(50, 6, dtype=torch.int8)

    assert torch.equal(reveal(labels, 0.75, generator(3)), reveal(labels, 0.75, generator(3)))
    assert not torch.equal(reveal(labels, 0.75, generator(3)), reveal(labels, 0.75, generator(4)))


def hand_case():
    logits = torch.tensor([[math.log(3.0), -math.log(3.0), 0.0, 7.0], [5.0, math.log(3.0), -9.0, 2.0]])
    labels = torch.tensor([[PRESENT, PRESENT, ABSENT, UNKNOWN], [UNCERTAIN, ABSENT, PRESENT, ABSENT]], dtype=torch.int8)
    states = torch.tensor([[UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN], [UNKNOWN, UNKNOWN, PRESENT, ABSENT]], dtype=torch.int8)
    # -log 3/4, -log 1/4, -log 1/2; the second image's only judged entry: -log 1/4.
    return logits, labels, states, math.log(4 / 3) + math.log(4) + math.log(2) + math.log(4)


def test_the_loss_by_hand():
    logits, labels, states, total = hand_case()

    assert masked_loss(logits, labels, states, "sum").item() == pytest.approx(total, rel=1e-6)
    assert masked_loss(logits, labels, states, "mean").item() == pytest.approx(total / 4, rel=1e-6)


def test_gradient_reaches_judged_logits_only():
    logits, labels, states, _ = hand_case()
    logits.requires_grad_(requires_grad=True)

    masked_loss(logits, labels, states).backward()

    expected = [[True, True, True, False], [False, True, False, False]]
    assert (logits.grad != 0).tolist() == expected


def test_nothing_to_judge_is_a_loss_of_zero():
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.full((2, 3), UNKNOWN, dtype=torch.int8)

    loss = masked_loss(logits, labels, labels)
    loss.backward()

    assert loss.item() == 0
    assert (logits.grad == 0).all()

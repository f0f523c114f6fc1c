"""Streams replay, differ by every part of their name, and leave global generators alone."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmlic.seeds import entry_uniforms, stream, text_keys, torch_global_stream, torch_seed, torch_stream

seeds = st.integers(0, 2**63)
NAMES = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 1, 0), (0, "a", 0, 1), (0, "a", 0, 0)]


@given(seeds, st.text(), st.lists(st.integers(0, 2**40), max_size=3))
def test_a_name_replays_its_stream(seed, purpose, numbers):
    first, second = (stream(seed, purpose, *numbers).random(4).tolist() for _ in range(2))

    assert first == second
    assert torch_seed(seed, purpose, *numbers) == torch_seed(seed, purpose, *numbers) < 2**63


def test_every_part_of_the_name_makes_another_stream():
    """The count of numbers is part of the name, so (1,) and (1, 0) differ."""
    assert len({stream(*name).random() for name in NAMES}) == len(NAMES)
    assert len({torch_seed(*name) for name in NAMES}) == len(NAMES)


def test_neighbouring_streams_are_uncorrelated():
    draws = np.array([stream(0, "client", client).standard_normal(2000) for client in range(20)])
    between = np.corrcoef(draws)[np.triu_indices(20, 1)]

    assert np.abs(between).max() < 4.5 / np.sqrt(2000)


@pytest.mark.parametrize("name", [(-1, "a"), (0, "a", -1)])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match="to be 0 or more"):
        stream(*name)


def test_a_torch_stream_replays():
    first, second = (torch.rand(5, generator=torch_stream(3, "dropout", 1)) for _ in range(2))

    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(5, generator=torch_stream(3, "dropout", 2)))


def test_the_global_torch_generator_is_set_inside_and_put_back_after():
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with torch_global_stream(0, "init"):
            draws.append(torch.rand(4))

    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_torch_generator_is_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), torch_global_stream(0, "init"):
        raise KeyError

    assert torch.equal(torch.get_rng_state(), before)


def test_numpys_global_generator_is_never_used():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    stream(0, "a").random()
    entry_uniforms(0, "a", 0, text_keys(["x"]), 3)

    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# Entry-wise uniforms


def mix(value):
    """SplitMix64's finaliser with Python's own integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(seeds, st.lists(st.integers(0, 2**64 - 1), max_size=4), st.integers(0, 4))
def test_uniforms_equal_a_second_implementation(seed, keys, num_columns):
    digest = hashlib.blake2b(b"keep", digest_size=16).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    first, second = np.random.SeedSequence([seed, *words, 1, 7]).generate_state(2, np.uint64).tolist()
    rows = [mix((mix(key ^ first) + second) % 2**64) for key in keys]
    columns = [mix((c * 0x9E3779B97F4A7C15 % 2**64) ^ second) for c in range(1, num_columns + 1)]
    expected = [[(mix(r ^ c) >> 11) / 2**53 for c in columns] for r in rows]

    found = entry_uniforms(seed, "keep", 7, np.array(keys, dtype=np.uint64), num_columns)
    assert expected == found.tolist()


@given(st.permutations(range(12)), st.integers(0, 12))
def test_order_and_company_of_rows_do_not_change_their_numbers(order, kept):
    keys = text_keys([f"image {i}" for i in range(12)])
    rows = np.array(order[:kept], dtype=np.int64)

    assert np.array_equal(entry_uniforms(1, "p", 2, keys[rows], 5), entry_uniforms(1, "p", 2, keys, 5)[rows])


def test_more_columns_keep_the_first_ones():
    keys = text_keys(["x", "y"])

    assert np.array_equal(entry_uniforms(1, "p", 2, keys, 9)[:, :4], entry_uniforms(1, "p", 2, keys, 4))


def test_numbers_are_uniform_and_independent_over_rows_columns_and_streams():
    keys = text_keys([f"image {i}" for i in range(20_000)])
    found = entry_uniforms(0, "p", 0, keys, 4)
    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    columns = [*found.T, entry_uniforms(0, "p", 1, keys, 1)[:, 0], entry_uniforms(0, "q", 0, keys, 1)[:, 0]]
    between = np.corrcoef([*columns, np.roll(columns[0], 1)])

    assert 0 <= found.min() < found.max() < 1
    assert np.abs(counts - 4000).max() < 4 * np.sqrt(80_000 / 20)
    assert np.abs(between[np.triu_indices(7, 1)]).max() < 4 / np.sqrt(20_000)


def test_keys_made_of_small_numbers_are_as_random():
    """Row keys 0, 1, 2, ... must not show as a pattern."""
    found = entry_uniforms(0, "p", 0, np.arange(20_000, dtype=np.uint64), 1)[:, 0]

    assert abs(found.mean() - 0.5) < 4 / np.sqrt(12 * 20_000)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / np.sqrt(20_000)


def test_text_keys_are_blake2b():
    expected = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in ("a", "é")]

    assert expected == text_keys(["a", "é"]).tolist()
    assert text_keys([]).shape == (0,)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**80 + 5])
def test_a_stream_is_numpys_of_the_listed_words(seed):
    """However large the numbers are, and through whatever NumPy takes fastest."""
    digest = hashlib.blake2b(b"order", digest_size=16).digest()
    words = [int.from_bytes(digest[start : start + 4], "little") for start in (0, 4, 8, 12)]
    plain = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words, 2, 3, 2**40])))

    assert stream(seed, "order", 3, 2**40).random() == plain.random()

    plain = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words, 2, 3, 4])))
    assert stream(seed, "order", 3, 4).random() == plain.random()

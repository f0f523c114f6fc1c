"""One seed, many named independent random streams.

A stream is named by its purpose and by the numbers it belongs to, for example
``stream(seed, "mask", client, round)``. Two streams with different names are
independent; the same name always replays. Nobody keeps generator state between
calls, so a resumed run draws what the uninterrupted one would have drawn.

Source: NumPy's ``SeedSequence`` (O'Neill 2015, "Developing a seed_seq
alternative"); the purpose enters as the first 128 bits of its BLAKE2b digest.
"""

from __future__ import annotations

import functools
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray


def _sequence(seed: int, purpose: str, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    if seed < 0 or any(number < 0 for number in numbers):
        msg = f"Expected seed and stream numbers to be 0 or more, got {seed} and {numbers}."
        raise ValueError(msg)
    # The count of numbers is part of the name: (1,) and (1, 0) must differ.
    entropy = [seed, *_words(purpose), len(numbers), *numbers]
    # NumPy takes long over a list, but only a list may hold larger numbers; what is drawn is the same.
    small = max(entropy) < 2**32
    return np.random.SeedSequence(np.array(entropy, dtype=np.uint32) if small else entropy)


@functools.lru_cache(maxsize=256)
def _words(purpose: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A NumPy generator that belongs to ``(seed, purpose, *numbers)`` alone.

    >>> float(stream(0, "cohort", 3).random()) == float(stream(0, "cohort", 3).random())
    True
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, numbers)))


def torch_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for torch that belongs to ``(seed, purpose, *numbers)`` alone."""
    words = _sequence(seed, purpose, numbers).generate_state(2, np.uint32)
    high, low = int(words[0]), int(words[1])
    return ((high << 32) | low) >> 1


def torch_stream(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU torch generator that belongs to ``(seed, purpose, *numbers)`` alone."""
    import torch  # configuration is checked before torch is needed

    return torch.Generator().manual_seed(torch_seed(seed, purpose, *numbers))


@contextmanager
def torch_global_stream(seed: int, purpose: str, *numbers: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with torch's hidden global generators set to a named stream.

    Dropout and weight initialisers take no generator argument; this is the one
    place that touches the global ones, and it puts them back. Only the CPU's generator and that
    of ``device`` are touched: asking for all GPUs costs a millisecond a time.
    """
    import torch

    chosen = [torch.default_generator]
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        chosen.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in chosen]
    try:
        for generator in chosen:
            generator.manual_seed(torch_seed(seed, purpose, *numbers))
        yield
    finally:
        for generator, state in zip(chosen, before, strict=True):
            generator.set_state(state)


def entry_uniforms(
    seed: int, purpose: str, number: int, row_keys: NDArray[np.uint64], num_columns: int
) -> NDArray[np.float64]:
    """float64 ``[rows, columns]`` in [0, 1), each a function of its own row key and column.

    A counter-based generator: the SplitMix64 finaliser (Steele, Lea and Flood 2014) over
    (stream, row key, column). Reordering or dropping rows leaves every other number as
    it was, which a sequential generator cannot do.
    """
    words = _sequence(seed, purpose, (number,)).generate_state(2, np.uint64)
    with np.errstate(over="ignore"):
        rows = _mix(_mix(row_keys.astype(np.uint64) ^ words[0]) + words[1])
        columns = _mix(np.arange(1, num_columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ words[1])
        bits = _mix(rows[:, None] ^ columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def text_keys(texts: list[str]) -> NDArray[np.uint64]:
    """uint64 ``[texts]``: a stable 64-bit key per text (BLAKE2b), the same in every process."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)

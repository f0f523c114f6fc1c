"""How fast the scene generator draws: images per second of one core, and seconds until the labels are known.

The best of several runs, in processor time of this process, so that other users of the machine
show little. Nothing is written.

    OMP_NUM_THREADS=1 uv run python benchmarks/scenes_rate.py --images 4096 --runs 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from fedmlic.datasets.scenes import scenes

CASES = {
    "tiny, 32 px": {"preset": "tiny"},
    "small, 64 px (defaults)": {"preset": "small"},
    "small, 96 px": {"preset": "small", "image_size": 96},
    "small, photographs behind": {"preset": "small", "background": "photos"},
    "medium, 96 px": {"preset": "medium"},
    "coco-like, 96 px": {"preset": "coco-like"},
    "nus-like, 64 px": {"preset": "nus-like"},
    "voc-like, 96 px": {"preset": "voc-like"},
    "flair-like, 1,000 of 51,414 owners": {"preset": "flair-like"},
}


def seconds(work: Callable[[], object], runs: int) -> float:
    """Least processor time of several runs."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096, help="images drawn per run")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(f"{'case':<38}{'images':>9}{'labels known':>15}{'drawn':>14}{'in all':>14}")
    for name, knobs in CASES.items():
        # A new data set each time: a data set remembers its scenes.
        planning = seconds(lambda knobs=knobs: scenes(**knobs).table(), max(1, options.runs // 2))  # type: ignore[misc]
        data = scenes(**knobs)  # type: ignore[arg-type]
        count = len(data.table().image_ids)
        rows = np.sort(np.random.default_rng(0).permutation(count)[: options.images])
        data.images(rows[:64])
        drawing = seconds(lambda data=data, rows=rows: data.images(rows), options.runs) / len(rows)  # type: ignore[misc]
        rate, overall = 1 / drawing, 1 / (drawing + planning / count)
        print(f"{name:<38}{count:>9,}{planning:>13.2f} s{rate:>10,.0f} /s{overall:>10,.0f} /s")


if __name__ == "__main__":
    main()

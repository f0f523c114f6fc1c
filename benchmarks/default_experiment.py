"""How much the default experiment teaches: methods x strategies against prevalence and central training.

For every combination a learning rate is chosen on the validation split with a seed of its own;
then the three seeds are run and the test mAP after the last round is reported. Test data select
nothing. Central training is the same network as a federation of one client that holds all images
and all labels, with as many passes over the data.

    uv run python benchmarks/default_experiment.py --out benchmarks/results/default_experiment.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedmlic.experiment import Experiment

SEARCH_SEED = 1000
RATES = (1e-3, 2e-3, 5e-3)
METHODS = {"bce": "bce(pool='logsumexp')", "fedlgt": Experiment().method}
STRATEGIES = {"fedavg": "fedavg()", "labelwise": "labelwise()"}


def run(settings: dict[str, object], folder: Path) -> dict[str, float]:
    """Metrics of one run of the command in a process of its own, on one core."""
    out = folder / str(abs(hash(json.dumps(settings, sort_keys=True))))
    settings = {**settings, "evaluate-every": 1000}  # the last round always is
    arguments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "sim.command", "run", *arguments, "engine=inprocess", "--out", str(out), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["metrics"]


def central(method: str) -> dict[str, object]:
    """The same network, all images and labels at one client, as many passes over the data."""
    default = Experiment()
    passes = default.num_rounds * default.local_epochs * default.cohort_size / default.num_clients
    return {
        "method": method,
        "partition": "iid()",
        "regime": "complete()",
        "num-clients": 1,
        "cohort-size": 0,
        "num-rounds": max(1, round(passes)),
        "local-epochs": 1,
    }


def combinations() -> dict[str, dict[str, object]]:
    """Every row of the table by name."""
    rows = {
        f"{method} x {strategy}": {"method": METHODS[method], "strategy": STRATEGIES[strategy]}
        for method in METHODS
        for strategy in STRATEGIES
    }
    return {**rows, **{f"{method} central": central(METHODS[method]) for method in METHODS}}


def report(results: dict[str, dict[str, object]]) -> str:
    """The table as Markdown."""
    lines = ["| | learning rate | test mAP (mean ± standard deviation) | seeds |", "|---|---|---|---|"]
    for name, found in results.items():
        scores = found["mAP"]
        spread = f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}"
        each = ", ".join(f"{score:.3f}" for score in scores)
        lines.append(f"| {name} | {found['learning-rate']:g} | {spread} | {each} |")
    prevalence = next(iter(results.values()))["prevalence"]
    return "\n".join([*lines, f"| a constant score (prevalence) | | {prevalence:.3f} | |"])


def main() -> None:
    """Search, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {name: row for name, row in combinations().items() if options.only in name}
    results: dict[str, dict[str, object]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(temporary)
        searches = {
            (name, rate): pool.submit(run, {**row, "learning-rate": rate, "seed": SEARCH_SEED}, folder)
            for name, row in rows.items()
            for rate in RATES
        }
        chosen = {}
        for name in rows:
            scores = {rate: searches[name, rate].result()["server/val/mAP"] for rate in RATES}
            chosen[name] = max(scores, key=lambda rate: scores[rate])
            print(f"{name}: validation mAP by learning rate {scores}", flush=True)
        runs = {
            name: [
                pool.submit(run, {**row, "learning-rate": chosen[name], "seed": seed}, folder)
                for seed in range(options.seeds)
            ]
            for name, row in rows.items()
        }
        for name, jobs in runs.items():
            found = [job.result() for job in jobs]
            results[name] = {
                "learning-rate": chosen[name],
                "mAP": [metrics["server/mAP"] for metrics in found],
                "prevalence": found[0]["server/prevalence"],
            }
    print(report(results))
    print(f"{time.monotonic() - started:.0f} s")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

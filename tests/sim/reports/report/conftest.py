"""A real Chromium for the page, spoken to over a pipe by its DevTools protocol."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One headless Chromium with one page."""

    def __init__(self, profile):
        self._in, there = os.pipe()
        here, self._out = os.pipe()
        # The browser reads commands from 3 and writes answers to 4.
        line = f'exec 3<&{here} 4>&{there}; exec "{CHROMIUM}" "$@"'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={profile}", "--no-first-run", "--disable-background-networking", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["bash", "-c", line, "chromium", *flags], pass_fds=(here, there), **quiet)
        os.close(here)
        os.close(there)
        self._number, self._held, self.events, self._session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Send one command and wait for its answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def _read(self):
        while b"\0" not in self._held:
            piece = os.read(self._in, 1 << 16)
            assert piece, "the browser is gone"
            self._held += piece
        first, _, self._held = self._held.partition(b"\0")
        return json.loads(first)

    def open(self, page, width=1400, theme="light", *, scripts=True):
        """Load a page from disk."""
        self.events = []
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, expression):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self):
        """Errors and warnings of the page."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        return [event for event in self.events if event.get("method") in kinds]

    def requests(self):
        """Addresses that the page asked for, besides itself and what is in it."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")][1:]

    def close(self):
        """End the browser."""
        self._session = None
        os.close(self._out)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)


@pytest.fixture(scope="module")
def browser():
    """A Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path")
    with tempfile.TemporaryDirectory(prefix="fedmlic-chromium-", ignore_cleanup_errors=True) as profile:
        made = Browser(Path(profile))
        yield made
        made.close()


@pytest.fixture(scope="session")
def small_study(play, tmp_path_factory):
    """A study of two rows with two seeds and one client of a local-only reference, played. Read it, never change it."""
    path = tmp_path_factory.mktemp("report") / "small study"
    rows = []
    for method in ("bce()", "asl()"):
        runs = []
        for seed in (0, 1):
            name = f"runs/{method[:3]}-{seed}"
            play(path / name, method=method, seed=seed, num_rounds=3)
            runs.append({"seed": seed, "run": name})
        rows.append({"label": method[:3], "values": {"method": method}, "reference": "", "runs": runs})
    alone = {"strategy": "fedavg()", "single_client": "2", "cohort_size": 0, "num_rounds": 2}
    play(path / "runs" / "local", method="bce()", seed=0, statistics_min_clients=1, statistics_min_images=1, **alone)
    runs = [{"seed": 0, "run": "runs/local"}, {"seed": 1, "run": "runs/not-begun"}]
    rows.append({"label": "local-only, bce(), client 2", "values": {}, "reference": "local-only", "runs": runs})
    about = {"base": {}, "axes": {"method": ["bce()", "asl()"]}, "seeds": [0, 1], "search": None, "rows": rows}
    (path / "study.json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="session")
def write_run():
    """A function: write the record of a run that nobody played, of any size, without a checkpoint."""
    import numpy as np

    from fedmlic.experiment import split_settings
    from fedmlic.record import create, write_json

    def write(path, names, num_rounds=5, *, complete=True, warning="", **settings):
        run = create(path, *split_settings({"num-rounds": num_rounds, "num-clients": 10, "cohort-size": 3, **settings}))
        rng = np.random.default_rng(int(settings.get("seed", 0)))
        ap = np.cumsum(rng.uniform(0, 1 / num_rounds, (num_rounds, len(names))), axis=0)
        present, known = rng.integers(5, 50, len(names)).tolist(), [100] * len(names)
        events = []
        for number in range(1, num_rounds + 1):
            here = ap[number - 1]
            events.append({"event": "client", "round": number, "client": 0, "host": "h", "num-images": 9, "loss": 0.5})
            columns = {"ap": here.tolist(), "f1": here.tolist(), "num_present": present, "num_known": known}
            events.append({"event": "labels", "round": number, "split": "test", "label": list(names), **columns})
            values = {
                "server/mAP": here.mean(),
                "server/val/mAP": here.mean(),
                "server/prevalence": 0.2,
                "loss": 1 / number,
            }
            cost = {"seconds": 2.0 * number, "train-seconds": 1.5, "bytes-up": 1e6, "bytes-down": 2e6}
            about = {"round": number, "num-clients": 3, "num-failed": 0, "best-round": number}
            events.append({"event": "round", **about, **values, **cost})
        run.events_path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        write_json(path / "data.json", {"warnings": [warning] if warning else [], "client_names": []})
        if complete:
            metrics = {"server/mAP": ap[-1].mean(), "server/val/mAP": ap[-1].mean(), "server/prevalence": 0.2}
            result = {"rounds": num_rounds, "best_round": num_rounds, "metrics": metrics, "weights_sha256": "0"}
            write_json(path / "result.json", {**result, "seconds": 2.0 * num_rounds})
        return path

    return write

"""``docs/record.md`` explains every column of every table and every event, and nothing that does not exist."""

import re
from pathlib import Path

import pytest

from fedmlic.record import TABLES, open_run

DOCS = Path(__file__).parent.parent / "docs"

ELSEWHERE = {"strategy/NAME", "client/new/NAME", "withheld/NAME", "client-name"}
"""Columns of runs with other rules, with clients that never took part, or with owners that have names."""

COUNTING = """
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.training import classifier


def counting():
    base = classifier(mean_binary_cross_entropy)

    def train(resident, shard, local):
        if shard.client == 1 and local.round == 1:
            raise ValueError("bad day")
        return base.train(resident, shard, local)._replace(metrics={"images seen": shard.num_images})

    return base._replace(train=train)
"""


def sections(page):
    """The first cells of the tables below each heading of the second level."""
    found = {}
    for part in re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        cells = re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE)
        found[heading] = [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory, tiny):
    """A run in which a client fails, the method counts and all clients are evaluated twice."""
    from sim.run import run

    folder = tmp_path_factory.mktemp("counted")
    (folder / "counts_images.py").write_text(COUNTING, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        changes = {"method": "counts_images.counting()", "cohort_size": 0, "num_rounds": 2, "evaluate_clients_every": 1}
        run(*tiny(**changes), folder / "run")
    return open_run(folder / "run")


def metric_names():
    """Every name that may follow ``server/``."""
    names = sections("metrics.md")["Names"]
    first, last = names.index("CP@3"), names.index("CP@3t")
    top = [f"{name}{suffix}" for name in ("CP", "CR", "CF1", "OP", "OR", "OF1") for suffix in ("@3", "@3t")]
    bounds = [f"{name}{suffix}" for name in ("mAP", "O-AP") for suffix in ("-lower", "-upper")]
    assert first < last
    return {*names, *top, *bounds, *sections("record.md")["Words in names"]}


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_the_columns_of_a_real_run(counted, table):
    documented = sections("record.md")[f"{table}.parquet"]
    columns = list(counted.tables()[table].columns)

    assert columns
    for column in columns:
        prefix = next((p for p in ("server/val/", "server/", "client/new/", "client/") if column.startswith(p)), None)
        named = prefix and f"{prefix}NAME" in documented and column.removeprefix(prefix) in metric_names()
        own = column.startswith("method/") and "method/NAME" in documented
        assert column in documented or named or own, f"{column} is not explained"
    for name in documented:
        there = name in ELSEWHERE or any(column.startswith(name.removesuffix("NAME")) for column in columns)
        assert name in columns or name in ELSEWHERE or (name.endswith("NAME") and there), f"{name} does not exist"


def test_the_page_has_every_event(counted):
    events = {event["event"] for event in counted.events()}

    assert set(sections("record.md")["Events"]) == events | {"failed", "set-aside", "statistics", "versions", "warning"}
    assert set(TABLES.values()) <= events


def test_the_page_names_every_file_of_the_folder(counted):
    text = (DOCS / "record.md").read_text(encoding="utf-8")

    for file in counted.path.iterdir():
        assert file.name.startswith(".") or file.name in text


def test_seconds_are_cumulative_and_errors_are_text(counted):
    tables = counted.tables()

    assert tables["rounds"]["seconds"].is_monotonic_increasing
    assert (tables["rounds"]["seconds"] >= tables["rounds"]["train-seconds"].cumsum() - 0.01).all()
    errors = tables["clients"]["error"]
    assert (errors != "").sum() == 1
    assert errors[errors != ""].iloc[0].startswith("ValueError: bad day")
    expected = tables["clients"].query("error == ''").groupby("round")["num-images"].sum()
    assert tables["rounds"]["method/images seen"].tolist() == expected.tolist()

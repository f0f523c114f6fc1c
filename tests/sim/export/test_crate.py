"""The crate of a run: its JSON-LD by the rules of RO-Crate 1.1 and Process Run Crate, its hashes, its files."""

import hashlib
import json
import os

import pytest

from fedmlic.errors import InputError
from sim.export.crate import run_files
from sim.export.export import export


@pytest.fixture(scope="module")
def crate(finished, tmp_path_factory):
    """A folder with the record of a run and its model, and the graph by id."""
    folder = tmp_path_factory.mktemp("crate") / "out"
    export(finished, {"ro-crate": folder, "safetensors": folder})
    found = json.loads((folder / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    return folder, found, {entity["@id"]: entity for entity in found["@graph"]}


def references(value):
    """Ids that an entity refers to."""
    if isinstance(value, list):
        return [each for item in value for each in references(item)]
    if isinstance(value, dict):
        assert set(value) == {"@id"}, "the graph must be flat"
        return [value["@id"]]
    return []


def many(value):
    return value if isinstance(value, list) else [value]


def test_the_descriptor_and_the_root_are_as_the_specification_asks(crate):
    _, found, graph = crate

    assert found["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    assert len(graph) == len(found["@graph"])
    descriptor, root = graph["ro-crate-metadata.json"], graph["./"]
    assert descriptor["@type"] == "CreativeWork"
    assert descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert root["@type"] == "Dataset"
    assert {"name", "description", "datePublished", "license", "hasPart", "mentions"} <= set(root)
    assert all(isinstance(entity["@type"], (str, list)) and entity["@id"] for entity in found["@graph"])


def test_whatever_is_referred_to_is_there(crate):
    _, found, graph = crate
    values = [(e["@id"], value) for e in found["@graph"] for key, value in e.items() if not key.startswith("@")]
    allowed = {"https://w3id.org/ro/crate/1.1"}

    missing = {name for _, value in values for name in references(value)} - set(graph) - allowed
    assert missing == set()
    reached = {name for _, value in values for name in references(value)}
    assert set(graph) - reached == {"ro-crate-metadata.json"}


def test_every_file_is_described_once_with_its_hash(crate, finished):
    folder, _, graph = crate
    files = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "ro-crate-metadata.json"
    }
    described = {name: entity for name, entity in graph.items() if entity["@type"] == "File"}

    assert set(described) == files == {part["@id"] for part in graph["./"]["hasPart"]}
    for name, entity in described.items():
        data = (folder / name).read_bytes()
        assert entity["sha256"] == hashlib.sha256(data).hexdigest()
        assert entity["contentSize"] == str(len(data))
    for file in run_files(finished):
        assert (folder / "run" / file.relative_to(finished)).read_bytes() == file.read_bytes()


def test_the_run_is_an_action_of_this_program(crate):
    _, _, graph = crate
    action = graph["#run"]

    assert action["@type"] == "CreateAction"
    assert graph[action["instrument"]["@id"]]["@type"] == "SoftwareApplication"
    assert action["description"].startswith("fedmlic run ")
    assert {"@id": "run/experiment.json"} in many(action["object"])
    assert {"@id": "run/result.json"} in many(action["result"])
    assert action["startTime"] <= action["endTime"]
    assert action["actionStatus"] == "http://schema.org/CompletedActionStatus"
    assert {"@id": "#run"} in many(graph["./"]["mentions"])
    assert {"@id": "model.safetensors"} in many(graph["#export"]["result"])


def test_licence_and_versions_are_those_that_are_known(crate):
    _, _, graph = crate
    import torch

    assert graph["#data-licence"]["name"].startswith("glyphs as bundled with scikit-learn")
    assert graph["#dataset"]["name"] == "multidigits"
    assert graph["#fedmlic-torch"]["softwareVersion"] == torch.__version__.partition("+")[0]


def test_what_clients_keep_to_themselves_and_locks_are_left_out(tmp_path):
    for name in ("memory/client-00001.safetensors", ".lock", "tensorboard/.half.tmp", "rounds.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    assert [file.name for file in run_files(tmp_path)] == ["rounds.parquet"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_link_out_of_the_run_is_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").symlink_to(tmp_path / "secret")

    with pytest.raises(InputError, match="a link to elsewhere"):
        run_files(tmp_path / "run")


def test_a_reader_of_crates_reads_it(crate):
    rocrate = pytest.importorskip("rocrate.rocrate")

    found = rocrate.ROCrate(str(crate[0]))

    assert found.root_dataset["license"].id == "#data-licence"
    assert found.dereference("#run")["instrument"]["name"] == "fedmlic"

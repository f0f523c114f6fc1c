"""What this machine holds and how fast it is: images, disk, memory, accelerator, one client's turn, a round's time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from fedmlic.errors import InputError, nearest
from sim.deployment.findings import Finding, size

if TYPE_CHECKING:
    from fedmlic.dataset import Dataset, Table
    from fedmlic.experiment import Experiment, Runtime

LOOKED_AT: Final = 40
"""Images that are decoded, spread evenly over all."""

TRIED_STEPS: Final = 4
"""Steps of the training that is timed."""

START_S: Final = 6.0
"""A SuperNode starts a process for every message, which imports torch, and looks for messages every 3 s."""

HEADROOM: Final = 2.0
"""How many times what was used should be free."""


class Images(NamedTuple):
    """What a device's data are.

    Attributes:
        findings: about them.
        shape: height, width, channels.
        label_names: that the device annotates.
        num_train: images to train on.
    """

    findings: list[Finding]
    shape: tuple[int, int, int] = (0, 0, 0)
    label_names: tuple[str, ...] = ()
    num_train: int = 0


def images_of(node: Mapping[str, Any], about: Mapping[str, Any], experiment: Experiment | None) -> Images:
    """Read the table of a device's data and decode some of its images.

    Args:
        node: the node config.
        about: of the kit.
        experiment: that will be run, where known.
    """
    from fedmlic import spec

    dataset: Dataset = spec.build("dataset", str(node["data"]))
    table = dataset.table()
    train = sum(split == "train" for split in table.splits)
    found = [_rows(train, len(table.splits)), *_shape(dataset, about), *_labels(dataset, about, experiment)]
    found += _decoded(dataset, table)
    found += _disk(node, dataset, len(table.splits))
    return Images(found, dataset.image_shape, dataset.label_names, train)


def _rows(train: int, total: int) -> Finding:
    text, values = f"{total:,} images, {train:,} of them to train on", {"images": total, "train": train}
    if not train:
        return Finding("images", "problem", text, "Write train into the column split of some rows.", values)
    return Finding("images", "ok", text, "", values)


def _shape(dataset: Dataset, about: Mapping[str, Any]) -> Iterator[Finding]:
    height, width, channels = dataset.image_shape
    text, wanted = f"{height} x {width}, {channels} channels", about.get("image-size")
    if wanted and ((height, width) != (wanted, wanted) or channels != about.get("channels", channels)):
        others = f"{wanted} x {wanted}, {about.get('channels', channels)} channels"
        yield Finding(
            "image size", "problem", f"{text}; the federation's is {others}", "Change data in the node config."
        )
    else:
        yield Finding("image size", "ok", text, "" if wanted else "All devices and the server need the same.")


def _labels(dataset: Dataset, about: Mapping[str, Any], experiment: Experiment | None) -> Iterator[Finding]:
    asked = experiment.label_names.split(",") if experiment and experiment.label_names else about.get("label-names", [])
    names = [str(name).strip() for name in asked]
    own = dataset.label_names
    if not names:
        yield Finding("labels", "warning", f"{len(own)} labels; those of the federation are unknown here", "Give them.")
        return
    foreign = [name for name in own if name not in names]
    if foreign:
        hints = " ".join(f"{name!r}: {nearest(name, names)}" for name in foreign[:3])
        text = f"{', '.join(map(repr, foreign[:8]))} are not among the federation's {len(names)} labels"
        yield Finding("labels", "problem", text, f"{hints} Rename or remove those columns.")
    else:
        text = f"{len(own)} of the federation's {len(names)} are annotated here"
        yield Finding("labels", "ok", text, "", {"annotated": len(own), "labels": len(names)})


def _decoded(dataset: Dataset, table: Table) -> Iterator[Finding]:
    rows = np.unique(np.linspace(0, len(table.splits) - 1, LOOKED_AT).astype(int)).tolist() if table.splits else []
    bad, started = [], time.perf_counter()
    for row in rows:
        try:
            dataset.image(row)
        except (InputError, OSError) as error:
            bad.append(f"{table.sources[row] if table.sources else table.image_ids[row]}: {error}")
    seconds = (time.perf_counter() - started) / max(1, len(rows))
    if bad:
        remedy = "fedmlic data check names all of them; mend them, or start runs with bad-files=skip."
        yield Finding("readable", "problem", f"{len(bad)} of {len(rows)} looked at cannot be read: {bad[0]}", remedy)
        return
    total = seconds * len(table.splits)
    each = f"{1e3 * seconds:.1f} ms each; about {total:,.0f} s to prepare all, once"
    text = f"{len(rows)} of {len(table.splits):,} decoded, {each}"
    yield Finding("readable", "ok", text, "", {"seconds_per_image": seconds})


def _disk(node: Mapping[str, Any], dataset: Dataset, num_images: int) -> Iterator[Finding]:
    from fedmlic.corpus import home as default_home

    home = Path(str(node["home"])).expanduser() if node.get("home") else default_home()
    there = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        remedy = "Give home= in the node config a folder of the service's user."
        yield Finding("disk", "problem", f"{home} cannot be written to", remedy)
        return
    need, free = 1.1 * num_images * float(np.prod(dataset.image_shape)), shutil.disk_usage(there).free
    text, values = f"{size(free)} free at {home}; prepared images take up to {size(need)}", {"free": free, "need": need}
    if free < need:
        yield Finding("disk", "problem", text, "Make room, or give home= another disk.", values)
    else:
        yield Finding("disk", "ok" if free > HEADROOM * need else "warning", text, "", values)


# --- memory and accelerator ----------------------------------------------------------------


def free_memory() -> int:
    """Bytes that programs may still take, as Linux says it and this container allows; 0 where that is unknown."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no limit
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def machine_findings(device: str) -> Iterator[Finding]:
    """Processors, memory and what the network would be computed on."""
    import torch

    from fedmlic.learner import choose_device

    free = free_memory()
    yield Finding("processors", "ok", f"{os.cpu_count()} processors, {size(free)} of memory free", "", {"free": free})
    chosen = choose_device(device)
    if chosen.type == "cpu":
        waits = torch.version.cuda is not None and device == "auto"
        yield Finding("device", "ok", "the processor" + ("; no GPU is there or visible" if waits else ""))
        return
    free, total = torch.cuda.mem_get_info(chosen)
    text = f"{torch.cuda.get_device_name(chosen)}, {size(free)} of {size(total)} free"
    yield Finding("device", "ok" if free > total // 4 else "warning", text, "" if free > total // 4 else "End others.")


# --- one turn ------------------------------------------------------------------------------


class Measured(NamedTuple):
    """One client's turn of the experiment, as measured here on random images.

    Attributes:
        step_s: seconds of a step.
        bytes_down: of the request as a device gets it, with the model.
        bytes_up: of the answer as a device sends it: packed, with whatever the mods left of the change.
        memory: most bytes that the process held.
    """

    step_s: float
    bytes_down: int
    bytes_up: int
    memory: int


def measure(experiment: Experiment, runtime: Runtime, names: tuple[str, ...], shape: tuple[int, int, int]) -> Measured:
    """Play two turns of the experiment's method and network, on random images and labels; the second counts.

    Args:
        experiment: its method, network, optimiser and batch count.
        runtime: device and threads.
        names: the federation's labels.
        shape: height, width, channels.

    Raises:
        InputError: the experiment does not fit such images.
        RuntimeError: the turn failed.
    """
    from clients.host import Host
    from clients.memory import FolderMemory
    from clients.opening import learner_for
    from fedmlic import wire
    from fedmlic.corpus import open_corpus
    from fedmlic.federation import local_federation
    from fedmlic.process import prepare
    from fedmlic.protocol import BY_IMAGES, Request
    from fedmlic.update import units_for

    prepare(runtime.threads)
    experiment = experiment.model_copy(update={"local_steps": TRIED_STEPS, "holdout_fraction": 0.0})
    with tempfile.TemporaryDirectory(prefix="fedmlic-") as folder:
        corpus = open_corpus(_random_images(names, shape, TRIED_STEPS * experiment.batch_size), Path(folder))
        federation = local_federation(corpus, label_names=names, holdout_fraction=0.0, seed=experiment.seed)
        runtime = runtime.model_copy(update={"home": folder})
        learner = learner_for(experiment, runtime, federation)
        kept = FolderMemory(Path(folder) / "memory")
        host = Host("doctor", experiment, federation, learner, memory=lambda _: kept, on_link=True)
        units = units_for(BY_IMAGES, federation.sizes.tolist(), len(names))
        for number in (1, 2):
            request = Request("train", number, learner.resident.flat.clone(), units, run="doctor")
            reply = host.play(request, [0])
            if reply.turns[0].error:
                msg = reply.turns[0].error.strip().splitlines()[-1]
                raise RuntimeError(msg)
    layout, turn = learner.resident.layout, reply.turns[0]
    model = wire.pack_model(request, layout)
    down = wire.described(wire.pack_request(request, [0], layout, model))["bytes"]
    up = wire.described(wire.pack_reply(reply, request.layout(layout)))["bytes"]
    return Measured(turn.seconds / max(1, turn.num_steps), down, up, _peak())


def _peak() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _random_images(names: tuple[str, ...], shape: tuple[int, int, int], count: int) -> Dataset:
    from fedmlic.dataset import NO_OWNER, Dataset, Table

    def table() -> Table:
        rng = np.random.default_rng(0)
        labels = (rng.random((count, len(names))) < 0.5).astype(np.int8)
        return Table([str(row) for row in range(count)], ["train"] * count, labels, np.full(count, NO_OWNER))

    def image(row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.random.default_rng(row).integers(0, 255, shape, dtype=np.uint8)

    return Dataset("random", "1", {"count": count, "shape": list(shape)}, names, shape, table, image)


def num_steps(experiment: Experiment, num_images: int) -> int:
    """Steps of a client's turn.

    >>> from fedmlic.experiment import Experiment
    >>> num_steps(Experiment(batch_size=16, local_epochs=2), 33)
    6
    """
    per_epoch = -(-num_images // experiment.batch_size)
    return experiment.local_steps or experiment.local_epochs * per_epoch


def round_findings(
    found: Measured, experiment: Experiment, runtime: Runtime, num_images: int, mbit: float | None
) -> Iterator[Finding]:
    """What a round will take: the model down, training, the answer up."""
    steps = num_steps(experiment, num_images)
    train = steps * found.step_s
    yield Finding(
        "training",
        "ok",
        f"{1e3 * found.step_s:,.0f} ms a step of {experiment.batch_size} images; a turn of {steps:,} steps takes "
        f"{train:,.0f} s",
        "",
        {"seconds_per_step": found.step_s, "steps": steps, "seconds": train},
    )
    free = free_memory()
    if free and found.memory:
        text, both = f"{size(found.memory)} used by a turn, {size(free)} free", {"used": found.memory, "free": free}
        enough = free > found.memory * (HEADROOM - 1)
        remedy = "" if enough else "Use a smaller batch-size or model, or end other programs."
        yield Finding("memory", "ok" if enough else "warning", text, remedy, both)
    sent = f"{size(found.bytes_down)} down and {size(found.bytes_up)} up"
    if not mbit:
        yield Finding("round", "warning", f"{sent} a round; the link's speed is unknown", "Give --link-mbit.")
        return
    moving = 8e-6 * (found.bytes_down + found.bytes_up) / mbit
    total = START_S + train + moving
    text = f"about {total:,.0f} s: {sent} at {mbit:,.0f} Mbit/s take {moving:,.0f} s, training {train:,.0f} s"
    values = {"seconds": total, "moving": moving, "bytes_down": found.bytes_down, "bytes_up": found.bytes_up}
    if total > runtime.round_timeout:
        remedy = (
            f"The run gives up after {runtime.round_timeout:g} s (round-timeout): raise it, or send less: a smaller "
            "model, lora or a frozen backbone, fewer rounds with more local work."
        )
        yield Finding("round", "problem", text, remedy, values)
    elif moving > train + START_S:
        remedy = "Most of it is sending: prefer fewer rounds with more local work, or a smaller model."
        yield Finding("round", "warning", text, remedy, values)
    else:
        yield Finding("round", "ok", text, "", values)

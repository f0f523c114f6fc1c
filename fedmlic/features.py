"""Feature maps of a backbone that does not train: computed once per image, kept on disk, memory-mapped.

Where no parameter of a backbone trains, an image's feature map is the same in every step, round,
client and run; where a backbone stands still in a method's first stretch of rounds, it is the same
there. ``open_features`` computes the maps of all images of a corpus into one folder of plain
arrays, ``<home>/features/<key>``, and opens it; later calls, in this process or another, only open
it. The network is then given maps in place of images: in place of its backbone it has ``Passed``,
which passes them on, so every method works as it is; in a first stretch of rounds the backbone
itself passes them on (``passing``).

The key is a hash of everything that decides the maps (``_identity``), the backbone's tensors and
the corpus's pixels among it, so a folder is never used for anything else. The folder is written
under a lock to a temporary name and renamed when complete, the manifest last; a build that was
killed goes on where it stopped. Maps are computed in float32, in batches of ``BATCH`` images with
one thread each, so neither threads nor an interruption show in them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedmlic import code, spec
from fedmlic import corpus as corpora
from fedmlic.errors import InputError
from fedmlic.files import file_sha256, locked, sync
from fedmlic.model import Backbone
from fedmlic.pixel_scale import PIXEL_MEAN, PIXEL_STD, to_float
from fedmlic.pretrained import freeze
from fedmlic.stores import (
    IMAGE_HASHES,
    PIXELS,
    DamagedError,
    Images,
    WrittenFiles,
    check_seal,
    check_unreadable,
    content_hash,
    seal,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmlic.corpus import Corpus
    from fedmlic.experiment import Experiment
    from fedmlic.inference import Inference
    from fedmlic.method import Method
    from fedmlic.model import Model

    Progress = Callable[[int, int], None]

SCHEMA = "fedmlic-features"
SCHEMA_VERSION = 1
"""Raised whenever maps are computed or written in another way."""

MAPS = "features.f32.npy"
"""File of the maps: float32 ``[images, features, height', width']``, in the order of the corpus's rows."""

HASHES_SO_FAR = "hashes_so_far.npy"
"""File of an unfinished build: uint64 ``[images]``, ``content_hash`` of every map that is on the disk, else 0."""

BATCH = 32
"""Images that are computed at once; another number could give other last bits."""

CHECKPOINT_S = 5.0
"""Least time between two writings of the hashes so far, and most work that a kill can cost."""

BACKBONE = "backbone."
"""Begins the names of a backbone's tensors in a method's network."""

FILE_ARGUMENTS = frozenset({"path", "vae", "weights"})
"""Arguments of the catalogue's models that name files or folders."""

TOLERANCE = 1e-3
"""Largest difference, as a share of the largest value, that counts as rounding."""


class FeatureMaps(Images):
    """Feature maps of all images of a corpus, taken by the corpus's rows as its images are.

    ``take(rows)`` gives float32 ``[rows, features, height', width']``, a contiguous copy; each map is
    compared with its hash when this process first reads it. ``shape`` is ``[images, features,
    height', width']``.

    Args:
        folder: where they lie.
        manifest: what its ``manifest.json`` says.

    Attributes:
        first_only: whether they stand for images in the method's first stretch of rounds alone.
    """

    raw: ClassVar[str] = MAPS
    as_maps: ClassVar[bool] = True

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        count, channels, height, width = manifest["shape"]
        super().__init__(folder, (count, channels, height, width), "raw", WrittenFiles(folder, manifest["files"]))
        self.manifest = manifest
        self.first_only = False

    @property
    def key(self) -> str:
        """Hash of everything that decides the maps."""
        return str(self.manifest["key"])

    def about(self) -> dict[str, Any]:
        """What a run keeps of it; JSON values."""
        identity, shape = self.manifest["identity"], list(self.shape)
        return {"key": self.key, "identity": identity, "shape": shape, "first_only": self.first_only}

    def are_of(self, backbone: Backbone) -> bool:
        """Whether a backbone has the tensors that the maps were computed with."""
        return bool(self.manifest["identity"]["tensors"] == tensors_sha256(backbone))


class Passed(Backbone):
    """Stands in a network where a backbone stood that does not train, and passes its feature maps on.

    Args:
        num_features: channels of the maps.
    """

    bn_policy = "none"

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor) -> Tensor:
        """The feature maps ``[batch, features, height', width']`` that were given in place of images."""
        if images.shape[1] != self.num_features:
            msg = (
                f"Expected feature maps of {self.num_features} channels, since the backbone does not train, got images "
                f"of {images.shape[1]}. Use features=computed; a method that works on images itself says needs_pixels."
            )
            raise InputError(msg)
        return images

    @staticmethod
    def put_into(network: nn.Module) -> None:
        """Take the backbone out of ``network``, in place."""
        network.backbone = Passed(backbone_of(network).num_features)


@contextmanager
def passing(network: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the backbone of ``network`` passes feature maps on; its tensors stay where they are."""
    backbone = backbone_of(network)
    own = vars(backbone)
    before = {"forward": own["forward"]} if "forward" in own else {}
    own["forward"] = Passed(backbone.num_features).forward
    try:
        yield network
    finally:
        del own["forward"]
        own.update(before)


def backbone_of(network: nn.Module) -> Backbone:
    """The backbone of a method's network.

    Raises:
        InputError: it has none.
    """
    backbone = getattr(network, BACKBONE.removesuffix("."), None)
    if not isinstance(backbone, Backbone):
        msg = f"Expected {type(network).__name__} to have a backbone, got none. Use another method."
        raise InputError(msg)
    return backbone


# When it applies


def obstacle_in_settings(experiment: Experiment, method: Method) -> str:
    """Why a method or evaluation needs images themselves, whatever the network; empty where it does not."""
    if experiment.augmentation != "none":
        return f"augmentation={experiment.augmentation} changes the images of every step"
    if method.needs_pixels:
        return f"method {experiment.method} works on the images itself"
    inference: Inference = spec.build("inference", experiment.inference)
    if inference.needs_pixels:
        return f"inference {experiment.inference} works on the images itself"
    return ""


def obstacle_in_backbone(experiment: Experiment, backbone: Backbone) -> str:
    """Why a backbone's maps may differ from step to step, as far as its layers tell; empty where they do not."""
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    if trained:
        return f"{len(trained)} tensors of model {experiment.model} train ({trained[0]}, ...), not its head alone"
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
            return f"BatchNorm {name} of model {experiment.model} depends on the batch"
    return ""


def obstacle(experiment: Experiment, method: Method, network: nn.Module) -> str:
    """Why feature maps cannot be used, as far as it can be seen without a trial; empty where nothing is seen."""
    found = obstacle_in_settings(experiment, method)
    if found:
        return found
    if not isinstance(getattr(network, BACKBONE.removesuffix("."), None), Backbone):
        return f"the network of method {experiment.method} has no backbone"
    return obstacle_in_backbone(experiment, backbone_of(network))


def obstacle_in_first_stretch(experiment: Experiment, method: Method, network: nn.Module) -> str:
    """Why feature maps cannot be used in the method's first stretch of rounds, without a trial; else empty."""
    found = obstacle_in_settings(experiment, method)
    if found:
        return found
    if not _begins_with_a_part(method):
        return f"method {experiment.method} does not begin with a stretch of rounds in which only a part trains"
    if not isinstance(getattr(network, BACKBONE.removesuffix("."), None), Backbone):
        return f"the network of method {experiment.method} has no backbone"
    trained = [name for name in _first_tensors(method, network) if name.startswith(BACKBONE)]
    return f"{len(trained)} tensors of model {experiment.model} train ({trained[0]}, ...)" if trained else ""


def _begins_with_a_part(method: Method) -> bool:
    return bool(method.phases) and method.phases[0].tensors is not None


def _first_tensors(method: Method, network: nn.Module) -> Sequence[str]:
    """What trains in the first stretch of rounds."""
    tensors = method.phases[0].tensors
    return () if tensors is None else tensors(network)


def still_norms(method: Method, network: nn.Module) -> list[nn.Module]:
    """BatchNorms of the backbone that use their statistics as they are in the method's first stretch of rounds."""
    trained = set(_first_tensors(method, network))
    return [
        module
        for name, module in network.named_modules()
        if name.startswith(BACKBONE)
        and isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
        and module.track_running_stats
        and f"{name}.running_mean" not in trained
    ]


def obstacle_before_data(experiment: Experiment, method: Method) -> str:
    """Why feature maps cannot be used, as far as it can be seen without any data; empty where nothing is seen."""
    found = obstacle_in_settings(experiment, method)
    if found:
        return found
    if _begins_with_a_part(method):
        return ""  # what trains first is known of the network, which needs the labels
    model: Model = spec.build("model", experiment.model)
    try:
        with torch.random.fork_rng(devices=[]):
            backbone = model.build(3)
    except InputError:
        return ""  # perhaps a model for grey images: it is built again when the images are known
    if method.freezes:
        freeze(backbone, {name for name, _ in backbone.named_parameters()})
    return obstacle_in_backbone(experiment, backbone)


def obstacle_in_behaviour(backbone: Backbone, images: Tensor, still: Iterable[nn.Module] = ()) -> str:
    """Why maps may differ from step to step, by trial: dropout, statistics of the batch and the like.

    Args:
        backbone: on the CPU; left as it was.
        images: float32 ``[1 or 2, channels, height, width]``.
        still: its modules that are in evaluation mode in training, too.
    """
    was_training = backbone.training
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = backbone.eval()(images)
        alone = backbone(images[:1])
        before = torch.get_rng_state()
        backbone.train()
        for module in still:
            module.eval()
        training = backbone(images)
        drew = not torch.equal(before, torch.get_rng_state())
        changed = any(not torch.equal(buffer, buffers[name]) for name, buffer in backbone.named_buffers())
        for name, buffer in backbone.named_buffers():
            buffer.copy_(buffers[name])
    backbone.train(was_training)
    if expected.ndim != 4:
        return f"it gives {expected.ndim} axes where a map has 4"
    if drew:
        return "its layers draw random numbers in training (dropout, stochastic depth)"
    if changed or not _close(training, expected):
        return "it computes in training what it does not compute in evaluation"
    return "" if _close(alone, expected[:1]) else "an image's map depends on the other images of its batch"


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    limit = TOLERANCE * max(float(expected.abs().max()), 1e-6)
    return bool((found - expected).abs().max() <= limit)


# Open


def features_of(
    experiment: Experiment,
    corpus: Corpus,
    device: torch.device | str,
    home: Path | None = None,
    progress: Progress | None = None,
) -> Callable[[Method, nn.Module], FeatureMaps | None]:
    """What ``fedmlic.learner.build_learner`` calls with a method and its network: see ``open_features``."""
    return lambda method, network: open_features(experiment, corpus, method, network, device, home, progress)


def open_features(
    experiment: Experiment,
    corpus: Corpus,
    method: Method,
    network: nn.Module,
    device: torch.device | str,
    home: Path | None = None,
    progress: Progress | None = None,
) -> FeatureMaps | None:
    """Open the feature maps of ``corpus``, computing them first if they are not there.

    Args:
        experiment: says whether maps are used (``features``).
        corpus: whose images.
        method: what a client does.
        network: the method's, with initial weights, on the CPU; its backbone is left as it was.
        device: where maps are computed.
        home: where they are kept; ``fedmlic.corpus.home()`` by default.
        progress: called with (images done, images in all) while they are computed.

    Returns:
        None where the experiment does not want them, or (``features="auto"``) they cannot be used. Maps that are
        ``first_only`` where the backbone trains after the method's first stretch of rounds.

    Raises:
        InputError: ``features="cached"`` and they cannot be used; no room; a damaged folder.
    """
    if experiment.features == "computed":
        return None
    found: FeatureMaps | str = obstacle(experiment, method, network)
    first_only = bool(found) and not obstacle_in_first_stretch(experiment, method, network)
    if first_only or not found:
        backbone, on = backbone_of(network), torch.device(device)
        still = still_norms(method, network) if first_only else []
        job = _Job(corpus, backbone, on, _identity(experiment, corpus, backbone, device), progress, still)
        found = _opened((home or corpora.home()) / "features", job)
    if isinstance(found, FeatureMaps):
        found.first_only = first_only
        return found
    if experiment.features == "cached":
        raise InputError(refusal(found))
    return None


def refusal(reason: str) -> str:
    """The message for somebody who asked for maps that cannot be used."""
    return (
        f"Expected an experiment whose feature maps can be kept (features=cached), got one where {reason}. "
        "Use a model with trainable='head', or features=auto."
    )


def features_key(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits: the hash of everything that decides feature maps."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(experiment: Experiment, corpus: Corpus, backbone: Backbone, device: torch.device | str) -> dict[str, Any]:
    """Everything that decides the maps. Their last bits depend on the kind of processor, too."""
    modules = tuple(sorted({*spec.modules("model", experiment.model), type(backbone).__module__}))
    pixels = ("images.offsets.npy", PIXELS[corpus.images.storage])
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "corpus": corpus.key,
        "pixels": {name: corpus.files.files[name]["sha256"] for name in pixels if name in corpus.files.files},
        "model": _without_files(experiment.model),
        "source": spec.build("model", experiment.model).content,
        "backbone": f"{type(backbone).__module__}.{type(backbone).__qualname__}",
        "tensors": tensors_sha256(backbone),
        "code": code.digest(code.files_behind(*modules)),
        "versions": _versions(modules),
        "pixel_scale": [PIXEL_MEAN, PIXEL_STD],
        "device": torch.device(device).type,
        "batch": BATCH,
    }


def _without_files(model: str) -> str:
    """The text of a model of the catalogue without the places of its files, whose content its source tells."""
    name, arguments = spec.parse(model, "model")
    kept = {key: value for key, value in arguments.items() if "." in name or key not in FILE_ARGUMENTS}
    return str(spec.Spec(name, kept))


def tensors_sha256(module: nn.Module) -> str:
    """Hash of every parameter and buffer of a module, those that are not saved included."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(module.named_buffers()), **dict(module.named_parameters())}.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _versions(modules: Sequence[str]) -> dict[str, str]:
    """Versions of torch and of the packages that a model is made of."""
    versions = {"torch": str(torch.__version__)}
    for module in modules:
        for imported in getattr(sys.modules.get(module), "IMPORTS", ()):
            package = imported.partition(".")[0]  # of torchvision.models: torchvision
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = ""
    return versions


@dataclass(frozen=True)
class _Job:
    """What is computed, and from what."""

    corpus: Corpus
    backbone: Backbone
    device: torch.device
    identity: Mapping[str, Any]
    progress: Progress | None
    still: Sequence[nn.Module]

    def images(self, start: int, stop: int) -> Tensor:
        """float32 ``[images, channels, height, width]`` of the corpus's rows, on the CPU."""
        return to_float(self.corpus.images.take(np.arange(start, min(stop, self.corpus.num_images))))


def _opened(base: Path, job: _Job) -> FeatureMaps | str:
    """The maps, or why there can be none."""
    key = features_key(job.identity)
    if (base / key).exists():
        return load_features(base / key)  # that it is there says that the backbone was tried
    reason = obstacle_in_behaviour(job.backbone, job.images(0, 2), job.still)
    if reason:
        return f"{job.identity['model']} does not give every image one feature map: {reason}"
    with ExitStack() as held:
        try:
            held.enter_context(locked(base, key))
        except OSError as error:
            msg = (
                f"Expected {base} to be writable, since feature maps of a backbone that does not train are kept, got: "
                f"{error}. Set FEDMLIC_HOME to a folder of yours, or use features=computed."
            )
            raise InputError(msg) from error
        # Another process may have computed them while this one waited.
        if not (base / key).exists():
            _build(job, base / key)
    return load_features(base / key)


def load_features(folder: Path) -> FeatureMaps:
    """Open a folder of feature maps after checking its manifest and the sizes of its files.

    Raises:
        InputError: it is incomplete, damaged or something else.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        check_seal(manifest)
        _check_manifest(folder, manifest)
        return FeatureMaps(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_unreadable(folder, error)
        msg = (
            f"Expected {folder} to hold complete feature maps, got: {error or type(error).__name__}. "
            "Delete that folder to have them computed again."
        )
        raise DamagedError(msg) from error


def _check_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    if (manifest["schema"], manifest["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
        msg = f"schema {manifest['schema']} {manifest['schema_version']}, not {SCHEMA} {SCHEMA_VERSION}"
        raise ValueError(msg)
    key = features_key(manifest["identity"])
    if {key, manifest["key"]} != {folder.name}:
        msg = f"its manifest describes the feature maps {key}"
        raise ValueError(msg)
    for name in (MAPS, IMAGE_HASHES):
        size, written = (folder / name).stat().st_size, manifest["files"][name]["bytes"]
        if size != written:
            msg = f"{name} has {size} bytes where {written} were written"
            raise ValueError(msg)


# Build


def _build(job: _Job, target: Path) -> None:
    """Compute all maps into a temporary folder and move it into place. Call under the lock."""
    started = time.perf_counter()
    part = target.with_name(f".{target.name}.tmp")
    part.mkdir(exist_ok=True)
    was_training = job.backbone.training
    try:
        with _one_thread(job.device) as pool:
            model = job.backbone.eval().to(job.device)
            shape = (job.corpus.num_images, *_computed(job, model, 0).shape[1:])
            num_computed = _write_maps(job, model, part, shape, pool)
    finally:
        job.backbone.train(was_training).to("cpu")
    seconds = time.perf_counter() - started
    _write_manifest(job, part, shape, {"computed": num_computed, "seconds": round(seconds, 3)})
    part.rename(target)
    sync(target.parent)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute a batch each, with one thread of torch, so that their number changes no bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that begin now take it over
    pool = ThreadPoolExecutor(1 if device.type != "cpu" else corpora.num_cores(), "features")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _computed(job: _Job, model: nn.Module, start: int) -> NDArray[np.float32]:
    """float32 ``[images, features, height', width']`` of the batch that begins at a row."""
    with torch.inference_mode():
        maps: Tensor = model(job.images(start, start + BATCH).to(job.device))
        return np.ascontiguousarray(maps.float().cpu().numpy())


def _write_maps(job: _Job, model: nn.Module, part: Path, shape: tuple[int, ...], pool: ThreadPoolExecutor) -> int:
    """Write every map and its hash, going on where an earlier build stopped; the number of maps computed."""
    hashes = _good_so_far(part, shape)
    starts = [start for start in range(0, shape[0], BATCH) if not hashes[start : start + BATCH].all()]
    _check_room(part, shape)
    header = _header(shape)
    size = int(np.prod(shape[1:])) * 4
    done = num_before = int((hashes != 0).sum())
    with _open(part / MAPS) as file:
        written_s = time.monotonic()
        try:
            file.write(header)
            for start, maps in _in_order(pool, starts, lambda start: _computed(job, model, start)):
                file.seek(len(header) + start * size)
                file.write(maps.data)
                done += int((hashes[start : start + BATCH] == 0).sum())
                hashes[start : start + BATCH] = [content_hash(one.data) for one in maps]
                if job.progress is not None:
                    job.progress(done, shape[0])
                if time.monotonic() - written_s > CHECKPOINT_S:
                    _keep(part, file, hashes)
                    written_s = time.monotonic()
        except BaseException:
            _keep(part, file, hashes)
            raise
        _keep(part, file, hashes)
    (part / HASHES_SO_FAR).rename(part / IMAGE_HASHES)
    return shape[0] - num_before


def _open(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _header(shape: tuple[int, ...]) -> bytes:
    """The beginning of the file of maps."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _good_so_far(part: Path, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """uint64 ``[images]``: hashes of the maps that an earlier build left whole, else 0."""
    for name in (IMAGE_HASHES, HASHES_SO_FAR):  # a build may have been killed after the last map
        if not ((part / name).is_file() and (part / MAPS).is_file()):
            continue
        try:
            hashes = np.load(part / name)
        except (OSError, ValueError, EOFError):
            continue
        if hashes.shape == shape[:1] and hashes.dtype == np.uint64:
            return _compared(part / MAPS, shape, hashes)
    return np.zeros(shape[0], dtype=np.uint64)


def _compared(path: Path, shape: tuple[int, ...], hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """``hashes`` with 0 for every map that does not have its hash."""
    size, begin = int(np.prod(shape[1:])) * 4, len(_header(shape))
    found = np.zeros_like(hashes)
    with path.open("rb") as file:
        for row in np.flatnonzero(hashes).tolist():
            file.seek(begin + row * size)
            found[row] = content_hash(file.read(size))
    return np.where(found == hashes, hashes, np.uint64(0))


def _check_room(part: Path, shape: tuple[int, ...]) -> None:
    there = (part / MAPS).stat().st_size if (part / MAPS).is_file() else 0
    needed, free = int(np.prod(shape, dtype=np.float64)) * 4 - there, shutil.disk_usage(part).free
    if needed > free:
        msg = (
            f"Expected {part.parent} to have {needed / 1e9:.1f} GB free for feature maps, got {free / 1e9:.1f} GB. Set "
            "FEDMLIC_HOME to a larger disk, choose smaller images, or use features=computed."
        )
        raise InputError(msg)


def _in_order(
    pool: ThreadPoolExecutor, starts: Sequence[int], compute: Callable[[int], NDArray[np.float32]]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """What is computed for every start, in order; few batches are in memory."""
    waiting: deque[tuple[int, Future[NDArray[np.float32]]]] = deque()
    for start in starts:
        waiting.append((start, pool.submit(compute, start)))
        if len(waiting) > corpora.num_cores() + 1:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _keep(part: Path, file: BinaryIO, hashes: NDArray[np.uint64]) -> None:
    """Put the maps on the disk, then their hashes."""
    file.flush()
    os.fsync(file.fileno())
    new = part / f"{HASHES_SO_FAR}.new"
    with new.open("wb") as written:
        np.save(written, hashes)
    sync(new)
    new.replace(part / HASHES_SO_FAR)


def _write_manifest(job: _Job, part: Path, shape: tuple[int, ...], report: Mapping[str, Any]) -> None:
    """Describe the files and only then write the manifest."""
    (part / "manifest.json").unlink(missing_ok=True)
    for name in (HASHES_SO_FAR, f"{HASHES_SO_FAR}.new"):
        (part / name).unlink(missing_ok=True)
    manifest = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "key": features_key(job.identity),
        "name": job.corpus.name,
        "identity": dict(job.identity),
        "shape": list(shape),
        "dtype": "float32",
        "report": dict(report),
        "files": {
            name: {"bytes": (part / name).stat().st_size, "sha256": file_sha256(part / name)}
            for name in (MAPS, IMAGE_HASHES)
        },
    }
    text = json.dumps({**manifest, "sha256": seal(manifest)}, indent=1)
    (part / "manifest.json").write_text(text, encoding="utf-8")
    for path in part.iterdir():
        sync(path)
    sync(part)

"""Write a model as ONNX, as a torch.export program, or as safetensors, and read it back to compare."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

from fedmlic.errors import InputError, installing
from fedmlic.record import jsonable, read_json, write_bytes, write_json
from sim.export.network import INPUT, OUTPUT, check_parity, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from sim.export.network import Parity, Sample
    from sim.predict import Predictor

ONNX_FILE, PROGRAM_FILE, WEIGHTS_FILE, CONFIG_FILE = "model.onnx", "model.pt2", "model.safetensors", "config.json"

OPSET = 20
"""Version of ONNX's operators; onnxruntime 1.17 and later know it."""

SCHEMA = 1


def write_onnx(
    folder: Path, program: ExportedProgram, metadata: Mapping[str, Any], expected: NDArray[np.float32], sample: Sample
) -> Parity:
    """Write ``model.onnx`` and compare it, run by onnxruntime, with the run's model.

    Args:
        folder: to write into.
        program: the chosen model as a graph (``network.exported_program``).
        metadata: texts, or what is written as JSON, by name: the model's ``metadata_props``.
        expected: float32 ``[images, labels]``, what the run's own model says of the sample.
        sample: real images.

    Raises:
        InputError: the extra ``fedmlic[export]`` is not installed, the model cannot be written, or differs.
    """
    onnx, runtime = need("onnx"), need("onnxruntime")
    need("onnxscript")
    import torch

    file = folder / ONNX_FILE
    try:
        with quiet():
            made = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
            )
            if made is not None:
                made.save(str(file), external_data=False)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = (
            f"Expected a model that torch.onnx can write, got one of which it says: {line} "
            "Export this run with --torch-export or --safetensors."
        )
        raise InputError(msg) from error
    if not file.is_file():
        msg = "Expected a model that torch.onnx can write, got nothing. Export this run with --torch-export."
        raise InputError(msg)
    model = onnx.load(str(file))
    model.producer_name = "fedmlic"
    texts = {name: value if isinstance(value, str) else json.dumps(jsonable(value)) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    write_bytes(file, model.SerializeToString())
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return check_parity("ONNX model", lambda images: session.run([OUTPUT], {INPUT: images})[0], expected, sample)


def write_program(folder: Path, program: ExportedProgram, expected: NDArray[np.float32], sample: Sample) -> Parity:
    """Write ``model.pt2``, a torch.export program, and compare it, read back, with the run's model.

    Raises:
        InputError: the model cannot be written, or differs.
    """
    import torch

    file = folder / PROGRAM_FILE
    with quiet():
        torch.export.save(program, str(file))
        module = torch.export.load(str(file)).module()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return found

    return check_parity("torch.export program", run, expected, sample)


def write_weights(
    folder: Path, predictor: Predictor, config: Mapping[str, Any], expected: NDArray[np.float32], sample: Sample
) -> Parity:
    """Write ``model.safetensors`` and ``config.json``, and compare the model that they give with the run's.

    Args:
        folder: to write into.
        predictor: the chosen model.
        config: what the file of the same name says beside its ``schema`` and ``kind``.
        expected: as for ``write_onnx``.
        sample: real images.

    Raises:
        InputError: the model that is read back differs.
    """
    from safetensors.torch import save

    state = predictor.learner.resident.network.state_dict()
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG_FILE, {"schema": SCHEMA, "kind": "model", **config})
    return check_parity("safetensors model", load_model(folder).scores, expected, sample)


def load_model(folder: Path) -> Predictor:
    """The model of a folder that ``fedmlic export --safetensors`` wrote, as a run's own model.

    Args:
        folder: with ``config.json`` and ``model.safetensors``.

    Raises:
        InputError: a file is missing or damaged, or the tensors do not fit the network that the settings describe.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fedmlic.experiment import split_settings
    from fedmlic.learner import build_learner
    from sim.predict import Predictor

    config = read_json(folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    try:
        height, width, channels = config["image_shape"]
        names, number, threshold = tuple(config["labels"]), int(config["round"]), float(config["threshold"])
        experiment, _ = split_settings(config["experiment"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        msg = f"Expected {folder / CONFIG_FILE} to be as 'fedmlic export' writes it, got {error!r}. Export again."
        raise InputError(msg) from None
    learner = build_learner(experiment, names, (height, width, channels))
    try:
        learner.resident.network.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        msg = f"Expected {file} to hold the tensors of the network of {CONFIG_FILE}, got: {line} Export again."
        raise InputError(msg) from None
    return Predictor(learner, names, number, threshold)


def need(package: str) -> ModuleType:
    """A package of the extra ``fedmlic[export]``.

    Raises:
        InputError: it is not installed.
    """
    find: Callable[[str], ModuleType] = importlib.import_module
    try:
        return find(package)
    except ImportError as error:
        msg = (
            f"Expected the package {package} for --onnx, got none that can be imported ({error}). "
            f"Run: {installing('export')}."
        )
        raise InputError(msg) from None

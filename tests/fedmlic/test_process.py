"""What a client's code changes of its process for good is put back for the next client."""

import os
import random
import sys

import numpy as np
import pytest
import torch

from fedmlic.process import restored


def numpys():
    return np.random.get_state()[1]  # noqa: NPY002  (the global generator, which a plug-in may use)


CHANGES = {
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "default type": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "default device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(3)),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        lambda: torch.use_deterministic_algorithms(mode=True),
    ),
    "cuDNN": (lambda: torch.backends.cudnn.benchmark, lambda: setattr(torch.backends.cudnn, "benchmark", True)),
    "products": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "anomalies": (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(mode=True)),
    "NumPy's errors": (np.geterr, lambda: np.seterr(all="ignore")),
    "working folder": (os.getcwd, lambda: os.chdir("/")),
    "search path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/nowhere")),
    "Python's numbers": (random.getstate, lambda: random.seed(3)),
    "NumPy's numbers": (lambda: numpys().tolist(), lambda: np.random.seed(3)),  # noqa: NPY002
    "torch's numbers": (lambda: torch.get_rng_state().tolist(), lambda: torch.manual_seed(3)),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_put_back_whether_the_client_fails_or_not(what, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read, change = CHANGES[what]
    before = read()

    def turn():
        with restored():
            change()
            assert read() != before
            if fails:
                raise ValueError

    if fails:
        with pytest.raises(ValueError, match=r"^$"):
            turn()
    else:
        turn()

    assert read() == before

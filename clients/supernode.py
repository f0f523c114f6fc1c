"""A SuperNode that accepts only the code which its owner approved.

Flower's own ``--trusted-entities`` looks at signatures that Flower's hub puts on apps. An app that is sent by
``flwr run`` has none, and then nothing runs. Here the SuperNode's check of signatures is replaced by a comparison
with ``code-digest`` of the node config: at the same moment, which is after the app has arrived and before it is
stored, unpacked or started; an app that is refused is answered with the same error (``INVALID_FAB``), and the node
goes on. That reaches into Flower, so versions which were not looked at are refused.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any, Final

from clients.approval import KEY, check_digest, problem_of
from fedmlic.errors import InputError

VERSIONS: Final = ("1.42",)
"""Flower's versions whose SuperNode was read and tried."""

_log = logging.getLogger("flwr")

Connection = tuple[Any, ...]
Connect = Callable[..., AbstractContextManager[Connection]]

_GET_APP: Final = 4
"""Place of the function that gets an app among what Flower's connection offers."""


def run_supernode() -> None:
    """``flower-supernode`` with its arguments from ``sys.argv``; the app's code is compared with ``code-digest``.

    Raises:
        InputError: a version of Flower that was not looked at, no digest in the node config, or ``--trusted-entities``.
    """
    installed = version("flwr")
    if ".".join(installed.split(".")[:2]) not in VERSIONS:
        msg = (
            f"Expected Flower {' or '.join(VERSIONS)}, for which the check of an app was written, got "
            f"{installed}. Install that version, or start flower-supernode, which runs whatever is sent."
        )
        raise InputError(msg)
    command = importlib.import_module("flwr.supernode.cli.flower_supernode")
    pin(command, importlib.import_module("flwr.supernode.start_client_internal"))
    command.flower_supernode()


def pin(command: ModuleType, loop: ModuleType) -> None:
    """Have the SuperNode compare every app with the digest of its node config.

    Args:
        command: Flower's module that reads the command line and calls ``start_client_internal``.
        loop: Flower's module with the SuperNode's loop.
    """
    start, connect = command.start_client_internal, loop.http_request_response
    assert callable(loop._verify_fab)  # noqa: S101, SLF001  (it is replaced; without it nothing would be checked)

    def start_pinned(**options: Any) -> None:  # noqa: ANN401  (Flower's)
        if options.get("trusted_entities"):
            msg = f"Expected either {KEY} or --trusted-entities, got both. Start flower-supernode for the latter."
            raise InputError(msg)
        approved = check_digest(options["node_config"].get(KEY))
        _log.info("Only code with the digest %s runs here.", approved)
        start(**{**options, "trusted_entities": {KEY: approved}})

    def verify(app: Any, trusted: dict[str, str]) -> bool:  # noqa: ANN401  (Flower's)
        problem = problem_of(app.content, trusted[KEY])
        if problem:
            _log.error("An app was refused. Nothing of it was installed. %s", problem)
        return not problem

    setattr(command, "start_client_internal", start_pinned)  # noqa: B010  (a module's attribute)
    setattr(loop, "http_request_response", _checked(connect))  # noqa: B010
    setattr(loop, "_verify_fab", verify)  # noqa: B010


def _checked(connect: Connect) -> Connect:
    """A connection whose apps all go through Flower's check of signatures, which skips apps that never had any."""

    @contextmanager
    def connected(*arguments: Any, **options: Any) -> Iterator[Connection]:  # noqa: ANN401  (Flower's)
        with connect(*arguments, **options) as parts:
            get_app = parts[_GET_APP]

            def get(name: str, run: int) -> Any:  # noqa: ANN401  (Flower's)
                app = get_app(name, run)
                return type(app)(app.hash_str, app.content, {"valid_license": "see code-digest"})

            yield (*parts[:_GET_APP], get, *parts[_GET_APP + 1 :])

    return connected

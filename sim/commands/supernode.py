"""``fedmlic supernode``: a SuperNode that runs approved code only."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sim.commands.shared import report_errors


def supernode(
    context: typer.Context,
    *,
    digest: Annotated[bool, typer.Option("--digest", help="Print the digest of the installed code, and end.")] = False,
) -> None:
    """Start a SuperNode that accepts only code with the digest in its node config (docs/deployment.md).

    All other options are those of flower-supernode.
    """
    with report_errors():
        from clients.approval import digest_of, own_code

        if digest:
            typer.echo(digest_of(own_code()))
            return
        from clients.supernode import run_supernode

        sys.argv = ["flower-supernode", *context.args]
        run_supernode()

"""``fedmlic predict``: label images with a run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from sim.commands.shared import Json, RunPath, print_json, report_errors, working

MAX_PREDICTED = 10
"""Labels of an image that are printed, unless more are present."""


def predict(
    path: RunPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...")],
    *,
    round_number: Annotated[Optional[int], typer.Option("--round", help="A kept round (default: the best).")] = None,  # noqa: UP045
    client: Annotated[Optional[int], typer.Option(help="Whose model, where clients keep tensors of their own.")] = None,  # noqa: UP045
    labels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Ask for these names instead, with commas between them (needs a read-out shared by labels)."),
    ] = None,
    inference: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="How the network is asked, such as 'patching()' (default: as the run was evaluated)."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Label images with a run's model (the best on validation).

    RUN is the run's folder, IMAGE an image file or a folder of such. A filled mark stands before labels at or above the
    run's threshold.
    """
    with report_errors():
        from sim.console import open_console, plain, say
        from sim.predict import predict as label

        with working(json_output=json_output):
            found = label(path, images, round_number, client, labels, inference)
        if json_output:
            print_json(found, "predict")
            return
        console = open_console()
        say(console, f"model {found['model']}", "dim")
        present, absent = "*-" if console.options.ascii_only else "●○"
        for entry in found["images"]:
            console.print(plain(entry["image"], "bold"), soft_wrap=True)
            if "uncertainty" in entry:
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in entry["uncertainty"].items())
                say(console, f"  uncertainty: {numbers}")
            most = max(MAX_PREDICTED, len(entry["present"]))
            shown = entry["labels"] if labels is not None else entry["labels"][:most]
            for item in shown:
                mark = present if item["probability"] >= found["threshold"] else absent
                say(console, f"  {mark} {item['probability']:.3f}  {item['label']}")
        if found.get("note"):
            say(open_console(stderr=True), f"note: {found['note']}", "yellow")

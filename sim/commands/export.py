"""``fedmlic export``: a run's model for other programs, or its record as an RO-Crate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from sim.commands.shared import Json, RunPath, print_json, report_errors, working

if TYPE_CHECKING:
    from sim.export.export import Format

Folder = Optional[Path]  # noqa: UP045  (typer reads the annotation)


def export(
    path: RunPath,
    *,
    onnx: Annotated[Folder, typer.Option(metavar="DIR", help="Write model.onnx into this new folder.")] = None,
    torch_export: Annotated[Folder, typer.Option(metavar="DIR", help="Write model.pt2 (torch.export).")] = None,
    safetensors: Annotated[Folder, typer.Option(metavar="DIR", help="Write model.safetensors and config.json.")] = None,
    ro_crate: Annotated[Folder, typer.Option(metavar="DIR", help="Copy the record as an RO-Crate.")] = None,
    model: Annotated[
        Literal["best", "last"], typer.Option(help="Best on validation, or after the last round.")
    ] = "best",
    client: Annotated[Optional[int], typer.Option(help="Whose model, where clients keep tensors of their own.")] = None,  # noqa: UP045
    precision: Annotated[float, typer.Option(help="Precision that thresholds of the rule 'precision' reach.")] = 0.9,
    min_entries: Annotated[
        int, typer.Option(min=1, help="Present and absent validation images that a label's own threshold needs.")
    ] = 10,
    json_output: Json = False,
) -> None:
    """Export a run's model with its card, labels and thresholds, or its record.

    RUN is the run's folder. Formats may be given together and share a folder. Each model is compared with the run's
    own on images of the test split before it is put in its place.
    """
    with report_errors():
        from sim.console import open_console
        from sim.data.prepare import Countings
        from sim.export.export import Choice
        from sim.export.export import export as write

        given: dict[Format, Path | None] = {
            "onnx": onnx,
            "torch-export": torch_export,
            "safetensors": safetensors,
            "ro-crate": ro_crate,
        }
        targets = {name: folder for name, folder in given.items() if folder is not None}
        with working(json_output=json_output), Countings(open_console(stderr=True)) as progress:
            found = write(path, targets, Choice(model, client, precision, min_entries), progress)
        if json_output:
            print_json(found, "export")
        else:
            _show(found)


def _show(found: dict[str, Any]) -> None:
    from sim.console import open_console, say

    console = open_console()
    if "model" in found:
        say(console, f"model: {found['model']}")
        about = found["thresholds"]
        say(
            console,
            f"thresholds: fitted on {about['num_images']:,} validation images; of {about['num_labels']} labels "
            f"{about['best-f1']} have one of best F1, {about['precision']} one at the target precision",
        )
    for each in found["written"]:
        say(console, f"{each['folder']}: {', '.join(each['formats'])}; {len(each['files'])} files")
        for name, parity in each["parity"].items():
            say(
                console,
                f"  {name}: within {parity['largest']:.1g} of the run's probabilities on {parity['num_images']} "
                f"{parity['split']} images",
            )

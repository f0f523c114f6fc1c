"""What clients hold: images and the labels that their annotators wrote down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.api.progress import open_progress
from sim.api.results import Run
from sim.api.settings import Base, settings_of
from sim.console import Display

if TYPE_CHECKING:
    import pandas as pd

    from fedmlic.federation import Federation
    from sim.api.client_images import ClientImages


def shard(
    base: Base = "",
    /,
    client: int = 0,
    *,
    held_out: bool = False,
    stored: bool = False,
    **settings: Any,  # noqa: ANN401  (settings are any)
) -> ClientImages:
    """What one client holds, as a ``torch.utils.data.Dataset``: images with observed labels, never the hidden truth.

    Args:
        base: a recipe's name, a TOML file, settings or a run to begin with; the default experiment without it.
        client: its id, 0, 1, ...
        held_out: the images that it only evaluates on, instead of those that it trains on.
        stored: images as they are stored, uint8 ``[height, width, channels]``, instead of what networks see.
        settings: those of ``fedmlic run``, with underscores.

    Raises:
        InputError: bad settings or data, or no such client.

    >>> images = shard("quick", client=1)
    >>> image, labels = images[0]
    >>> image.dtype, tuple(image.shape), labels.dtype, sorted(labels.unique().tolist())
    (torch.float32, (3, 24, 24), torch.int8, [-1, 0, 1])
    """
    from sim.api.client_images import ClientImages

    federation = federation_of(base, settings)
    names = federation.client_names
    held = federation.shard(client)
    return ClientImages(held, names[client] if names else "", held_out=held_out, stored=stored)


def clients(base: Base = "", /, **settings: Any) -> pd.DataFrame:  # noqa: ANN401
    """One row per client: images, annotated labels, entries, and how they differ from the federation's.

    Args:
        base: as in ``shard``.
        settings: as in ``shard``.

    Raises:
        InputError: bad settings or data.

    >>> int(clients("quick")["images"].sum())
    540
    """
    from fedmlic.statistics import summarise

    federation = federation_of(base, settings)
    found = summarise(federation.tallies(), federation.label_names).clients
    if federation.client_names:
        found.insert(1, "name", list(federation.client_names))
    return found


def federation_of(base: Base, settings: dict[str, Any]) -> Federation:
    """The federation of an experiment, built if it is not there; that of a run is checked to be the one it had."""
    from clients.opening import images_of, open_federation
    from fedmlic.experiment import split_settings
    from sim.outcome import corpus_of

    experiment, runtime = split_settings(settings_of(base, settings))
    if isinstance(base, Run) and not settings:
        corpus = corpus_of(base.path)
    else:
        with Display(open_progress(shown=True)) as display:
            corpus = images_of(
                experiment, runtime, progress=lambda done, total: display.building("images", done, total)
            )
    return open_federation(experiment, runtime, corpus)

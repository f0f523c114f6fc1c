"""CLIP's text half through open_clip: the length of prompts and their features.

``fedmlic.text.clip`` is what configurations name; this file needs torch and, when a
tower is built, the optional package open_clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedmlic.errors import InputError, installing, nearest
from fedmlic.pretrained import UNFIT, check_weights_file, read_weights, too_large
from fedmlic.prompts import check_lengths
from fedmlic.seeds import torch_global_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Tower:
    """The text half of a CLIP model on the CPU, in float32.

    Args:
        name: open_clip's name of the architecture.
        weights: a local file, or empty.
        tag: else open_clip's tag of weights, fetched if they are not in its cache.

    Attributes:
        source: where the weights come from, for the record.

    Raises:
        InputError: open_clip is missing, or the names or weights do not fit.
    """

    def __init__(self, name: str, weights: str, tag: str) -> None:
        try:
            import open_clip  # optional, and slow to import
        except ImportError as error:
            msg = f"Expected open_clip to be installed for clip vectors, got none. Run: {installing('clip')}."
            raise InputError(msg) from error
        self._check_name(open_clip, name)
        self.source, quick_gelu = self._origin(open_clip, name, weights, tag)
        origin = str(Path(weights).expanduser().resolve()) if weights else tag
        try:
            # Weights are drawn before they are loaded; that must not move anybody's stream.
            with torch_global_stream(0, "text/clip"):
                self._model = open_clip.create_model(name, pretrained=origin, force_quick_gelu=quick_gelu)
        except UNFIT as error:
            if isinstance(error, MemoryError):
                raise too_large(origin) from error
            if weights:
                read_weights(weights)  # if it cannot be read at all, the reason is told there
            reason = " ".join(str(error).split())[:300]
            msg = f"Expected {origin!r} to hold weights of {name}, got: {reason}. Use the file of this very model."
            raise InputError(msg) from error
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    @staticmethod
    def _check_name(open_clip: Any, name: str) -> None:  # noqa: ANN401  (a module)
        known = open_clip.list_models()
        if name not in known:
            msg = f"Expected model of clip to be a name of open_clip's, got {name!r}. {nearest(name, known)}"
            raise InputError(msg)
        text = open_clip.get_model_config(name).get("text_cfg", {})
        if "hf_tokenizer_name" in text or "hf_model_name" in text or "siglip" in name.lower():
            msg = f"Expected model of clip to use CLIP's own tokenizer, got {name!r}. Use another, such as ViT-B-16."
            raise InputError(msg)

    @staticmethod
    def _origin(open_clip: Any, name: str, weights: str, tag: str) -> tuple[str, bool]:  # noqa: ANN401
        """Where the weights come from, and whether they need the QuickGELU activation to be forced."""
        if weights:
            return check_weights_file(weights), False
        settings = open_clip.get_pretrained_cfg(name, tag)
        if not settings:
            known = open_clip.list_pretrained_tags_by_model(name)
            msg = f"Expected pretrained of clip to be a tag of {name}, got {tag!r}. {nearest(tag, known)}"
            raise InputError(msg)
        return f"open_clip {tag}", bool(settings.get("quick_gelu", False))

    def fits(self, prompt: str) -> bool:
        """Whether the model reads the whole prompt (start and end tokens included)."""
        length: int = self._tokenizer.context_length
        return len(self._tokenizer.encode(prompt)) + 2 <= length

    def tokens(self, text: str) -> list[int]:
        """Numbers of a text's tokens, without those of start and end."""
        return list(self._tokenizer.encode(text))

    def half(self) -> dict[str, torch.Tensor]:
        """The tensors of the text half by open_clip's names, and what they do not tell, as tensors too.

        ``heads`` of attention, ``quick_gelu`` (0 or 1) and ``eps`` of LayerNorm stand beside the tensors.

        Raises:
            InputError: it is no plain transformer (CoCa, MobileCLIP and others are none).
        """
        half = getattr(self._model, "text", self._model)
        try:
            block = half.transformer.resblocks[0]
            known = {
                "heads": torch.tensor(block.attn.num_heads),
                "quick_gelu": torch.tensor(int(type(block.mlp.gelu).__name__ == "QuickGELU")),
                "eps": torch.tensor(half.ln_final.eps, dtype=torch.float64),
            }
        except (AttributeError, TypeError, IndexError) as error:
            msg = (
                "Expected the text half of the model to be CLIP's plain transformer, got another network. Use the "
                "weights of a plain CLIP, such as ViT-B-16."
            )
            raise InputError(msg) from error
        tensors = {name: value for name, value in half.state_dict().items() if not name.startswith("visual.")}
        return {**tensors, **known}

    def encode(self, prompts: list[str], *, scaled: bool) -> NDArray[np.float64]:
        """Features, float64 ``[prompts, width]`` (computed in float32); ``scaled``: each of length 1."""
        check_lengths(self, prompts, self._tokenizer.context_length)
        with torch.inference_mode():
            parts = [
                self._model.encode_text(self._tokenizer(prompts[start : start + 256]), normalize=scaled)
                for start in range(0, len(prompts), 256)
            ]
        return np.asarray(torch.cat(parts).double().numpy())

"""Saves and loads trained encoders: weights as safetensors, architecture as JSON."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from adaptive_ray.errors import UserError
from adaptive_ray.run_directory.atomic_write import write_whole
from trainables.settings import EncoderSettings
from trainables.simclr import Encoder, build_encoder


def save_encoder(encoder: Encoder, directory: Path, *, image_size: int, provenance: dict[str, Any]) -> None:
    """Writes ``encoder.safetensors`` and ``encoder.json`` into ``directory``."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    write_whole(directory / "encoder.safetensors", save(weights))  # save_file raises no OSError on a full disk
    description = {
        "architecture": encoder.settings.model_dump(mode="json"),
        "channels": encoder.channels,
        "image_size": image_size,
        "features": encoder.settings.features,
        "input": "float images in [0, 1], [n, channels, height, width]; encoder.embed takes uint8 and numpy arrays too",
        **provenance,
    }
    write_whole(directory / "encoder.json", json.dumps(description, indent=1) + "\n")


def load_encoder(path: str | Path) -> Encoder:
    """Loads the encoder of a run in evaluation mode on the CPU.

    Args:
        path: Directory of the run, or its ``encoder.safetensors`` or ``encoder.json``.

    Returns:
        A module: float images in [0, 1] [n, C, H, W] -> representations [n, features]. ``embed`` also accepts uint8
        images, numpy arrays and [n, H, W, C].

    Raises:
        UserError: A file is missing or corrupt, or the two do not match.
    """
    path = Path(path)
    directory = path.parent if path.suffix in (".safetensors", ".json") else path
    for name in ("encoder.json", "encoder.safetensors"):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: no encoder found ({name} is missing)")
    try:
        description = json.loads((directory / "encoder.json").read_text(encoding="utf-8"))
        settings = EncoderSettings.model_validate(description["architecture"])
        size = description.get("image_size")
        encoder = build_encoder(settings, description["channels"], image_size=size, pretrained=False)
        encoder.load_weights(load_file(directory / "encoder.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, ValidationError, SafetensorError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise UserError(f"{directory}: the files of the encoder are corrupt: {reason}") from None
    return encoder.eval()

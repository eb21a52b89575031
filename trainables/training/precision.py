"""Chooses the precision for a device."""

from __future__ import annotations

import torch


def supports_bfloat16(device: torch.device) -> bool:
    """Returns whether ``device`` supports bfloat16 natively. CPUs without support emulate it several times slower."""
    if device.type != "cpu":
        return True
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))

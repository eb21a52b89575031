"""Chooses the precision for a device."""

from __future__ import annotations

import torch


def supports_bfloat16(device: torch.device) -> bool:
    """Returns whether ``device`` computes fast in bfloat16: GPUs since Ampere (compute capability 8.0), and some CPUs.

    Others emulate it, CPUs several times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))

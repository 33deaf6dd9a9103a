"""How much of the hardware a training uses: the model's operations over what the devices could have done."""

from __future__ import annotations

import torch
import torch.distributed as dist

# Dense tensor-core peaks of the data sheets in TFLOP/s: bf16 (fp16 where there is none), and fp32 without tf32. The
# first name that is part of the device's name counts, so the longer ones come first.
_PEAKS: dict[str, tuple[float, float]] = {
    "GH200": (989.0, 67.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "B200": (2250.0, 75.0),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 31.0),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def peak(name: str, precision: str) -> float | None:
    """Peak of one device in FLOP/s, or None for one that is not known.

    Args:
        name: as the driver gives it, "NVIDIA H100 80GB HBM3".
        precision: "bf16" or "32".
    """
    for part, (half, single) in _PEAKS.items():
        if part in name:
            return 1e12 * (half if precision == "bf16" else single)
    return None


def utilisation(flops: float, seconds: float, device: torch.device, precision: str) -> dict[str, float]:
    """Columns of the log for the model's operations of all processes in so many seconds; none where nobody counted.

    Returns:
        "tflop" (10^12 operations), "tflop_per_second", and on a device whose peak is known "utilisation", their share
        of it (the "MFU" of Chowdhery et al. 2022: what is computed twice to save memory counts once).
    """
    if not flops:
        return {}
    rate = flops / max(seconds, 1e-9)
    # Four digits: a small model's epoch is far below 10^12
    columns = {"tflop": float(f"{flops / 1e12:.4g}"), "tflop_per_second": float(f"{rate / 1e12:.4g}")}
    best = peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if best is not None:
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        columns["utilisation"] = round(rate / (best * world), 4)
    return columns

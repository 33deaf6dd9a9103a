"""Utilisation: peaks by the names that drivers give, and a log that says only what was counted."""

from __future__ import annotations

import pytest
import torch

from seqgraph.train import speed


@pytest.mark.parametrize(
    "name, half, single",
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10G", 70e12, 31e12),
        ("Tesla T4", 65e12, 8.1e12),
    ],
)
def test_peaks(name, half, single):
    assert speed.peak(name, "bf16") == half and speed.peak(name, "32") == single


def test_unknown_devices_have_none():
    assert speed.peak("NVIDIA GeForce GTX 1080", "bf16") is None


def test_columns(monkeypatch):
    cpu = torch.device("cpu")
    assert speed.utilisation(0.0, 2.0, cpu, "bf16") == {}
    assert speed.utilisation(4e12, 2.0, cpu, "bf16") == {"tflop": 4.0, "tflop_per_second": 2.0}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    found = speed.utilisation(989e12, 2.0, torch.device("cuda"), "bf16")
    assert found == {"tflop": 989.0, "tflop_per_second": 494.5, "utilisation": 0.5}

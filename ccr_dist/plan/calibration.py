"""Speeds that were measured on the machine at hand, kept as a checked JSON, and used in place of a device's table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccr_dist.devices import Device


@dataclass(frozen=True)
class Calibration:
    """What a machine reaches.

    Attributes:
        machine: what it was measured on: host, processor or GPU, threads, versions.
        flops: FLOP/s of matrix products by precision.
        bytes_per_s: of operators that move bytes and compute little.
        per_kernel: seconds beside its work that a call of an operator takes.
        processes: number of local processes that the collectives were measured over.
        alpha: seconds of a collective of few bytes, by its name.
        beta: seconds a byte of a buffer, by name of the collective.
    """

    machine: dict[str, Any]
    flops: dict[str, float]
    bytes_per_s: float
    per_kernel: float
    processes: int = 1
    alpha: dict[str, float] = field(default_factory=dict)
    beta: dict[str, float] = field(default_factory=dict)


def write(calibration: Calibration, path: Path) -> None:
    """Keep a calibration in a file. Raises StorageError."""
    raise NotImplementedError


def read(path: Path) -> Calibration:
    """Read a calibration. Raises ConfigError for a file that is missing, damaged or something else."""
    raise NotImplementedError


def measure(device: str = "auto", processes: int = 1, seconds: float = 20.0) -> Calibration:
    """Measure this machine.

    Args:
        device: auto, cpu or cuda.
        processes: over which collectives are measured, on this machine.
        seconds: about how long it may take.
    """
    raise NotImplementedError


def device_of(calibration: Calibration) -> Device:
    """The machine as a device, for one that the table lacks, such as a CPU."""
    raise NotImplementedError

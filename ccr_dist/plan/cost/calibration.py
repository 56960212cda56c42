"""Speeds that were measured on the machine at hand, kept as a checked JSON, and used in place of a device's table.

`measure.py` makes one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ccr_dist.data.storage.checked import read_checked, with_digest
from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.collectives import Wire
from ccr_dist.plan.step.operators import Kind

FORMAT = "ccr-dist calibration 2"
NEAREST = 3  # measured shapes between which a rate is interpolated


@dataclass(frozen=True)
class Product:
    """A measured product (or attention, or convolution; see `operators.Kind`): FLOP/s of it."""

    name: str
    m: int
    n: int
    k: int
    batch: int
    flops_per_s: float


@dataclass(frozen=True)
class Calibration:
    """What a machine reaches, a rank of it.

    Attributes:
        machine: what it was measured on: host, processor or GPU, versions. `device` is cpu or cuda.
        cores: cores that its processes share.
        threads: of a process.
        products: measured products by precision.
        moves: (bytes that a call moves, bytes/s) of operators that compute little, by size.
        per_kernel: seconds beside its work that a call of an operator takes.
        memory_bytes: of the device; of a CPU: what this machine has.
        processes: local processes that the collectives were measured over.
        alpha: seconds of a collective of few bytes, by its name.
        beta: seconds a byte of a buffer, by name of the collective.
        factor: measured by predicted seconds of whole steps, 1 where none were measured (`fitted`).
        copies: (bytes that a call reads and writes, bytes/s) of copies into memory that is there, by size; none: as
            `moves`. Operators that work in place take it.
        clones: the same of copies into new memory, whose pages the system has to find.
        engines: seconds of an engine's own work on the host, by strategy, and by kind of tensor and part of a step
            (`engines.py`).
    """

    machine: dict[str, Any]
    cores: int
    threads: int
    products: dict[str, tuple[Product, ...]]
    moves: tuple[tuple[float, float], ...]
    per_kernel: float
    memory_bytes: int
    processes: int = 1
    alpha: dict[str, float] = field(default_factory=dict)
    beta: dict[str, float] = field(default_factory=dict)
    factor: float = 1.0
    copies: tuple[tuple[float, float], ...] = ()
    clones: tuple[tuple[float, float], ...] = ()
    engines: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Hardware and versions, for people and file names."""
        return f"{self.machine['name']}, torch {self.machine['torch']}"

    def moving(self, size: float, name: str = "moves") -> float:
        """Bytes/s of a call that moves `size` bytes, between those that were measured. `name`: that of its `Kind`."""
        points = {"copy": self.copies, "clone": self.clones}.get(name) or self.moves
        if size <= points[0][0]:
            return points[0][1]
        for (low, slow), (high, fast) in pairwise(points):
            if size <= high:
                part = math.log(size / low) / math.log(high / low)
                return math.exp((1 - part) * math.log(slow) + part * math.log(fast))
        return points[-1][1]

    def wire(self, kind: str) -> Wire:
        """The link between local processes as a collective sees it: all_reduce, all_gather or reduce_scatter; of those
        that measured no reduce_scatter, as all_gather does.
        """
        if kind not in self.alpha:
            kind = "all_gather"
        steps = (2 if kind == "all_reduce" else 1) * (self.processes - 1)
        return Wire(self.alpha[kind] / steps, steps / self.processes / self.beta[kind])


def nearest(calibration: Calibration, kind: Kind, precision: str) -> float:
    """FLOP/s of an operator, from the measured ones of the most similar shape: their rates, weighted by how near they
    are in the logarithms of rows, columns, depth and number.
    """
    known = calibration.products[precision]
    alike = [each for each in known if each.name == kind.name] or [each for each in known if each.name == "product"]
    wanted = _place(kind)
    near = sorted((math.dist(wanted, _place(each)), each.flops_per_s) for each in alike)[:NEAREST]
    if near[0][0] < 1e-9:
        return near[0][1]
    weights = [1 / distance**2 for distance, _ in near]
    logs = sum(weight * math.log(rate) for weight, (_, rate) in zip(weights, near, strict=True))
    return math.exp(logs / sum(weights))


def fitted(pairs: Sequence[tuple[float, float]]) -> float:
    """The factor of a calibration from whole steps: (predicted with a factor of 1, measured), their geometric mean."""
    return math.exp(sum(math.log(measured / predicted) for predicted, measured in pairs) / len(pairs))


def _place(shape: Kind | Product) -> tuple[float, ...]:
    return tuple(math.log(max(1, size)) for size in (shape.m, shape.n, shape.k, shape.batch))


def write(calibration: Calibration, path: Path) -> None:
    """Keep a calibration in a file. Raises StorageError."""
    values = {"format": FORMAT, **asdict(calibration)}
    replace_atomic(path, (json.dumps(with_digest(values), indent=1) + "\n").encode())


def read(path: Path, named: str = "--calibration") -> Calibration:
    """Read a calibration.

    Args:
        path: the file.
        named: the option or key that names it, for messages.

    Raises:
        ConfigError: the file is missing, damaged, or no calibration.
    """
    try:
        values, _ = read_checked(path, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{named} {path}: no such file; `ccr-dist plan ... --measure` makes one") from None
    if values.pop("format", None) != FORMAT:
        raise ConfigError(f"{named} {path}: no calibration of this version; make one with --measure")
    try:
        values["products"] = {key: tuple(Product(**row) for row in rows) for key, rows in values["products"].items()}
        for name in ("moves", "copies", "clones"):
            values[name] = tuple((float(size), float(rate)) for size, rate in values[name])
        found = Calibration(**values)
        rates = [each.flops_per_s for rows in found.products.values() for each in rows]
        rates += [rate for _, rate in (*found.moves, *found.copies, *found.clones)]
        rates += [found.factor, found.per_kernel, *found.alpha.values(), *found.beta.values()]
        if not all(rate > 0 and math.isfinite(rate) for rate in rates) or not found.moves:
            raise ValueError("a speed of 0, or none")
        if not all(0 <= each < math.inf for parts in found.engines.values() for each in parts.values()):
            raise ValueError("an engine that takes no number of seconds")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{named} {path}: not a calibration ({error}); make one with --measure") from None
    return found

"""How fast a machine is at what a step is made of: from the table of devices, or from a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ccr_dist import devices
from ccr_dist.devices import Device
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost.calibration import Calibration, nearest
from ccr_dist.plan.cost.collectives import Ranks, Wire
from ccr_dist.plan.step.operators import Kind

# What training code reaches of a GPU's data sheet, and what starting a kernel costs. The same for all GPUs and all
# models; docs/plan.md says what they were compared with.
PRODUCTS = 0.7  # of the peak, by products large enough to fill the GPU
MOVES = 0.8  # of the memory's bandwidth
LAUNCH = 12e-6  # seconds of the host for an operator in eager mode, forward or backward
WAIT = 15e-6  # seconds of a collective beside its steps: launch and synchronisation of streams
CORE = 20e9  # FLOP/s in float64 of large products on one core of a GPU's host: AVX2 at 3 GHz reaches less than its 48
# of that rate, by LAPACK's routines: eigenvectors and singular vectors are half products of a matrix and a vector,
# which wait for memory
REACHED = {"cholesky": 0.5, "triangular": 0.5, "cholesky_solve": 0.5, "eigh": 0.15, "svd": 0.1}


@dataclass(frozen=True)
class Machine:
    """Speeds of one rank.

    Attributes:
        name: for people.
        ranks: how ranks are joined.
        flops: FLOP/s of large products.
        bytes_per_s: of the memory.
        per_kernel: seconds of a call beside its work.
        queued: calls are queued and run behind the host (GPUs): they cost time only where the device waits for them;
            and collectives run beside computations.
        crowd: how many times as long computations take, and what ranks of one node send each other, since they share
            cores.
        factor: by which computations of whole steps were slower than their operators, measured one by one.
        calibration: measured rates of products and moves by size, if any.
        precision: fp32, bf16 or fp16.
        rates: FLOP/s of large products by precision, of a device in the table: fp32, tf32, fp64, ...
    """

    name: str
    ranks: Ranks
    flops: float
    bytes_per_s: float
    per_kernel: float
    queued: bool
    crowd: float = 1.0
    factor: float = 1.0
    calibration: Calibration | None = None
    precision: str = "fp32"
    rates: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, kind: Kind) -> tuple[float, float]:
        """Of one call: seconds of arithmetic, and seconds by which moving its bytes takes longer than that."""
        arithmetic = moving = 0.0
        if kind.flops:
            arithmetic = kind.flops / self._flops_per_s(kind)
        if self.calibration is None or not kind.flops:  # measured rates of products include their bytes
            rate = self.bytes_per_s if self.calibration is None else self.calibration.moving(kind.moved, kind.name)
            moving = kind.moved / rate
        return arithmetic, max(0.0, moving - arithmetic)

    def engine(self, strategy: str) -> Mapping[str, float] | None:
        """Seconds of an engine's own work on the host, as `Calibration.engines`; None: it was not measured."""
        return self.calibration.engines.get(strategy) if self.calibration is not None else None

    def solving(self, kind: Kind, threads: int) -> float:
        """Seconds of one call on the CPU of one rank, of so many threads. A calibration of a CPU knows its speed."""
        if not self.queued:
            return self.factor * (sum(self.seconds(kind)) + self.per_kernel)
        return kind.flops / (CORE * threads * REACHED.get(kind.name, 1.0))

    def _flops_per_s(self, kind: Kind) -> float:
        wanted = kind.precision or self.precision
        if self.calibration is not None:
            if wanted not in self.calibration.products:
                raise ConfigError(
                    f"the calibration of {self.name} has no speeds for {wanted}{_user(wanted)}: measure again with"
                    " --measure"
                )
            return nearest(self.calibration, kind, wanted)
        if kind.name == "convolution" and wanted == "fp32" and "tf32" in self.rates:
            return self.rates["tf32"]  # torch lets cuDNN round to it, and keeps it off for products
        if wanted == self.precision:
            return self.flops
        if wanted not in self.rates:
            raise ConfigError(
                f"{self.name}: its table has no tflops.{wanted}{_user(wanted)}: add it to the device's file"
            )
        return self.rates[wanted]


def _user(precision: str) -> str:
    """What computes in a precision whatever the run's is."""
    uses = {"fp64": "stages in closed form sum up", "fp32": "losses are computed"}
    return f", in which {uses[precision]}" if precision in uses else ""


def machine_of(
    device: Device | None,
    *,
    gpus: int,
    per_node: int,
    precision: str,
    network: str | None = None,
    calibration: Calibration | None = None,
) -> Machine:
    """The speeds of ranks on such machines.

    Args:
        device: the GPU; None: the calibration's machine.
        gpus: number of ranks, one a GPU.
        per_node: ranks of a node.
        precision: fp32, bf16 or fp16.
        network: name of the link between nodes; None: that of the device's usual node.
        calibration: measured speeds.

    Raises:
        ConfigError: `gpus` is not a multiple of `per_node`, the device has no units for the precision, or nothing says
            how fast nodes talk.
    """
    if gpus < 1 or per_node < 1:
        raise ConfigError(f"{gpus} GPUs in nodes of {per_node}: expected at least one of each")
    nodes, here = math.ceil(gpus / per_node), min(gpus, per_node)
    if nodes > 1 and gpus % per_node:
        raise ConfigError(
            f"--gpus {gpus}: not a multiple of the {per_node} GPUs of a node (--nodes-of); nodes are planned whole, so"
            f" take {gpus // per_node * per_node} or {nodes * per_node}"
        )
    if calibration is not None:
        return _measured(calibration, nodes, here, precision, device, network)
    assert device is not None
    peak = device.peak(precision)
    if peak is None:
        raise ConfigError(
            f"{device.title} has no units for {precision}; it has {', '.join(_chosen_from(device))}: choose another"
            " with --precision or runtime.precision"
        )
    ranks = Ranks(nodes, here, inside_of(device), between_of(device, network, per_node), WAIT)
    rates = {name: PRODUCTS * (device.peak(name) or 0.0) for name in device.tflops}
    return Machine(
        device.title, ranks, PRODUCTS * peak, MOVES * device.bytes_per_s, LAUNCH, queued=True, precision=precision,
        rates=rates,
    )  # fmt: skip


def _chosen_from(device: Device) -> list[str]:
    """The precisions of a device that a run may ask for."""
    return sorted(device.tflops.keys() & {"bf16", "fp16", "fp32"})


def inside_of(device: Device) -> Wire:
    """The link between the GPUs of a node."""
    link = devices.link(device.node.link, "inside")
    return Wire(link.alpha, link.bytes_per_s)


def between_of(device: Device, network: str | None, per_node: int) -> Wire:
    """All adapters of a node together. A smaller or larger node than the usual one has as many for each GPU, and at
    least one. `network`: NAME, or NAMExN with another number of adapters.
    """
    link, adapters = devices.network(network or device.node.network)
    usual = max(1, device.node.adapters * per_node // device.node.gpus)
    return Wire(link.alpha, link.bytes_per_s * (adapters or usual))


def _measured(
    calibration: Calibration, nodes: int, here: int, precision: str, device: Device | None, network: str | None
) -> Machine:
    if precision not in calibration.products:
        raise ConfigError(
            f"the calibration of {calibration.name} has no speeds for {precision}, only for"
            f" {', '.join(sorted(calibration.products))}: measure again with --measure --precision {precision}"
        )
    if nodes > 1 and device is None and network is None:
        raise ConfigError(
            f"{nodes} nodes: the calibration of {calibration.name} knows one machine; say how nodes are joined with"
            " --network, for example --network ethernet10"
        )
    between = Wire(0.0, 1.0)
    if nodes > 1 and device is not None:
        between = between_of(device, network, here)
    elif nodes > 1 and network is not None:
        link, adapters = devices.network(network)
        between = Wire(link.alpha, link.bytes_per_s * (adapters or 1))
    if calibration.processes > 1:
        reduced, gathered, scattered = map(calibration.wire, ("all_reduce", "all_gather", "reduce_scatter"))
    elif device is not None:
        reduced, gathered, scattered = inside_of(device), None, None
    elif here * nodes > 1:
        raise ConfigError(
            f"the calibration of {calibration.name} was measured on one process, and says nothing of collectives:"
            " measure again with --measure and --gpus of more than one"
        )
    else:
        reduced, gathered, scattered = Wire(0.0, 1.0), None, None
    ranks = Ranks(nodes, here, reduced, between, gathers=gathered, scatters=scattered)
    gpu = calibration.machine.get("device") == "cuda"
    crowd = 1.0 if gpu else _crowd(calibration, here)
    return Machine(
        calibration.name, ranks, 0.0, 0.0, calibration.per_kernel, queued=gpu, crowd=crowd,
        factor=calibration.factor, calibration=calibration, precision=precision,
    )  # fmt: skip


def _crowd(calibration: Calibration, here: int) -> float:
    """How many times as long a rank takes since more of them share a core than when the machine was measured. A rank's
    processor time does not run while another one has the core.
    """
    then, now = (max(1.0, count * calibration.threads / calibration.cores) for count in (calibration.processes, here))
    return now if calibration.machine.get("clock") == "cpu" else now / then

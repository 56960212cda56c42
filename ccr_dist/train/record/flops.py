"""How much arithmetic a step is, and how much the device could do: for the model FLOPs utilisation (MFU) in the log.

MFU = FLOPs of the step on all ranks / (its seconds x ranks x the device's peak). FLOPs are those of matrix products,
convolutions and attention, two a multiplication with addition, in forward, losses and backward, as torch's
FlopCounterMode sees them in the first step of each stage and language. A second forward by gradient caching is not
counted; one by gradient checkpointing is. Captions are padded to the longest of a batch: other batches of the language
have a few percent more or less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ccr_dist import devices


def peak(device: torch.device, precision: str, given: float | None) -> float | None:
    """FLOP/s of one device at the precision of a run; `given` (TFLOP/s) where it is. None: unknown, as it is of CPUs,
    and of a precision that the device has no units for.
    """
    if given is not None:
        return given * 1e12
    if device.type != "cuda":
        return None
    known = devices.called(torch.cuda.get_device_name(device))
    return None if known is None else known.peak(precision, tf32=torch.backends.cuda.matmul.allow_tf32)


class Flops:
    """FLOPs of a step on this rank, by what makes them differ (stage and language); counted once each."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    @contextmanager
    def counting(self, key: str) -> Iterator[None]:
        """Around what is to be counted, unless it has been."""
        if key in self.known:
            yield
            return
        counter = FlopCounterMode(display=False, custom_mapping=on_cpu())
        with torch.compiler.set_stance("force_eager"), counter:  # it sees no operation inside of compiled code
            yield
        self.known[key] = counter.get_total_flops()


def on_cpu() -> dict[Any, Any]:
    """Attention's kernels on the CPU, which torch's registry leaves out."""

    def forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }

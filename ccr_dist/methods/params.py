"""How many parameters a method has, by part: what tables of adapter methods compare."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ccr_dist.methods.base import Method


def count(method: Method) -> dict[str, int]:
    """Numbers of parameters.

    Each module of `method.net` by its name ("adapter", "generator", …); "front_end" without, and "table" with, the rows
    of its embedding table; "trainable": everything that some stage trains, "total": backbone and net, "auxiliary":
    networks that are not deployed.
    """
    parts = Counter({"adapter": 0, "front_end": 0, "table": 0})
    prefixes = tuple(prefix for stage in method.options.training_stages() for prefix in method.trainable(stage))
    for name, parameter in method.named_parameters().items():
        size = parameter.numel()
        parts["total"] += size
        if prefixes and name.startswith(prefixes):
            parts["trainable"] += size
        if name.startswith("net."):
            part = name.split(".")[1]
            parts["table" if name.startswith("net.front_end.table.") else part] += size
    parts["auxiliary"] = sum(parameter.numel() for parameter in method.aux.parameters())
    parts["trainable"] += 0
    return dict(parts)


def summary(method: Method) -> dict[str, Any]:
    """`count` as tables show it: {"parts": {module of `net`: number}, "front_end", "table", "total", "trainable",
    "share", "auxiliary"}.

    share: trainable of total, 0 to 1. Parts without parameters are left out; the front end is none of them.
    """
    numbers = count(method)
    apart = ("front_end", "table", "total", "trainable", "auxiliary")
    parts = {name: number for name, number in numbers.items() if name not in apart and number}
    return {"parts": parts, **{name: numbers[name] for name in apart}, "share": numbers["trainable"] / numbers["total"]}

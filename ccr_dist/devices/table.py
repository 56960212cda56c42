"""Finds devices and links by name: those that come with ccr-dist, and those of a user's own file of the same form."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ccr_dist import resources
from ccr_dist.devices.schema import Device, Link
from ccr_dist.errors import ConfigError
from ccr_dist.yamlfile import load, validate


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: dict[str, Device] = {}
    links: dict[str, Link] = {}


@functools.cache
def _shipped(name: str) -> _Table:
    return read(resources.package() / "devices" / name)


def read(path: Path) -> _Table:
    """A file of devices and links. Raises ConfigError for anything that does not fit, such as a link of speed 0."""
    return validate(_Table, load(path))


def devices() -> dict[str, Device]:
    """All GPUs of the table by name."""
    return _shipped("gpus.yaml").gpus


def links() -> dict[str, Link]:
    """All links of the table by name."""
    return _shipped("links.yaml").links


def called(name: str, known: Mapping[str, Device] | None = None) -> Device | None:
    """The GPU that CUDA calls so, for example "NVIDIA A100-SXM4-80GB"; None: the table does not have it, or it is part
    of one (MIG), with part of its speed.

    Args:
        name: as `torch.cuda.get_device_name` returns it.
        known: instead of the table.
    """
    words = set(name.replace("-", " ").split())
    if "MIG" in words:
        return None
    found = {
        sum(map(len, needed)): device
        for device in (devices() if known is None else known).values()
        for needed in device.cuda
        if words.issuperset(needed)
    }
    return found[max(found)] if found else None


def named(name: str, own: Path | None = None) -> Device:
    """A GPU.

    Args:
        name: its name in the table, such as h100-80gb, or the one that CUDA gives it.
        own: a user's file, whose entries win.

    Raises:
        ConfigError: the table has none of that name; names similar ones.
    """
    known = devices() | (read(own).gpus if own is not None else {})
    found = known.get(name.lower()) or called(name, known)
    if found is None:
        raise ConfigError(_unknown("device", name, known))
    return found


def link(name: str, kind: str, own: Path | None = None) -> Link:
    """A link.

    Args:
        name: its name in the table, such as ndr400.
        kind: "inside" a node, or "between" nodes.
        own: a user's file, whose entries win.

    Raises:
        ConfigError: the table has none of that name and kind; names similar ones.
    """
    every = links() | (read(own).links if own is not None else {})
    known = {key: value for key, value in every.items() if value.kind == kind}
    if name.lower() not in known:
        raise ConfigError(_unknown(f"link {kind} nodes", name, known))
    return known[name.lower()]


def network(name: str) -> tuple[Link, int | None]:
    """A link between nodes.

    Args:
        name: NAME, or NAMExN with the number of adapters of a node.

    Returns:
        The link, and the number of adapters if the name has one.

    Raises:
        ConfigError: the table has none of that name, or the number is 0.
    """
    head, sign, count = name.rpartition("x")
    if not (sign and count.isdigit()):
        return link(name, "between"), None
    if int(count) < 1:
        raise ConfigError(f"network {name}: a node needs at least one adapter")
    return link(head, "between"), int(count)


def _unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name.lower().replace(" ", "-"), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return f"{what} {name!r}: not in the table of devices; {hint} (others: a file of your own, see docs/plan.md)"

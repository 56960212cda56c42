"""What hardware can do: GPUs, how nodes are made of them, and the links between them, as YAML with a source for each
figure. No torch.

`named("h100-80gb")`, or by the name that CUDA gives a device. `link("ndr400")`.
"""

from ccr_dist.devices.schema import Device, Link, Node
from ccr_dist.devices.table import called, devices, link, links, named, network

__all__ = ["Device", "Link", "Node", "called", "devices", "link", "links", "named", "network"]

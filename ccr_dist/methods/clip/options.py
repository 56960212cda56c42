"""Options of `clip`."""

from __future__ import annotations

from typing import Literal

from ccr_dist.config import MethodOptions
from ccr_dist.methods.registry import register_options


@register_options("clip")
class ClipOptions(MethodOptions):
    name: Literal["clip"]

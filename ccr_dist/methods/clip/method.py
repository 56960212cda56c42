"""Method `clip`."""

from __future__ import annotations

from ccr_dist.methods.base import Method
from ccr_dist.methods.clip.options import ClipOptions
from ccr_dist.methods.registry import register_method


@register_method("clip")
class Clip(Method):
    Options = ClipOptions

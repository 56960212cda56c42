"""Zero-shot: the backbone as it is. Every language goes through its English text encoder, and nothing is trained."""

from __future__ import annotations

from typing import Literal

from ccr_dist.config import MethodOptions
from ccr_dist.methods.base import Method, register


class ClipOptions(MethodOptions):
    name: Literal["clip"]


@register("clip")
class Clip(Method):
    Options = ClipOptions

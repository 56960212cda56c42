"""Method `translate_test`."""

from __future__ import annotations

from ccr_dist.methods.base import Method
from ccr_dist.methods.registry import register_method
from ccr_dist.methods.translate_test.options import TranslateTestOptions


@register_method("translate_test")
class TranslateTest(Method):
    Options = TranslateTestOptions

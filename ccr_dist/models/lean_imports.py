"""What libraries import only because it is installed, and nobody here uses: left out, since every process would pay.

Wherever scikit-learn is installed, transformers imports it, and with it pandas, for one function of assisted
generation: two of the seven seconds in which the first model is imported. sentence-transformers and mteb, which need
it, import it themselves.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

_MODULE = "transformers.generation.candidate_generator"


class _WithoutSklearn(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        from transformers import utils

        known = utils.is_sklearn_available
        utils.is_sklearn_available = lambda: False
        try:
            super().exec_module(module)
        finally:
            utils.is_sklearn_available = known


class _Finder:
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _WithoutSklearn(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Once a process, before transformers is imported."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)

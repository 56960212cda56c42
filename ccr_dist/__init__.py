"""Cross-lingual cross-modal retrieval, trained on clusters. See README.md in this folder for the architecture.

For programs: `load` opens a model, `open_dataset` a dataset. Nothing is imported before it
is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccr_dist.api import load as load
    from ccr_dist.api import open_dataset as open_dataset

__version__ = "0.1.0"
__all__ = ["__version__", "load", "open_dataset"]
_HOMES = {"load": "ccr_dist.api", "open_dataset": "ccr_dist.api"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

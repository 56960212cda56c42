"""Cross-lingual cross-modal retrieval, trained on clusters. See README.md in this folder for the architecture.

For programs: `load` opens a model, `open_dataset` a dataset, `Index` an index of pictures, which a `Searcher` searches
with a model. Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccr_dist.api import load as load
    from ccr_dist.api import open_dataset as open_dataset
    from ccr_dist.search.index import Index as Index
    from ccr_dist.search.searcher import Searcher as Searcher

__version__ = "0.1.0"
__all__ = ["Index", "Searcher", "__version__", "load", "open_dataset"]
_HOMES = {
    "load": "ccr_dist.api",
    "open_dataset": "ccr_dist.api",
    "Index": "ccr_dist.search.index",
    "Searcher": "ccr_dist.search.searcher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""Models of which only the architecture is wanted: what a loader would read from files or a hub stays random.

A planner builds models of tensors without contents, whose weights may not be on the machine at all. Every place that
loads weights asks here first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_wanted = False


def only_architecture() -> bool:
    """Whether weights are to be left out."""
    return _wanted


@contextmanager
def without_weights() -> Iterator[None]:
    """Context manager: models are built without their weights, and libraries do not warn of that. Never for one that is
    used.
    """
    global _wanted
    before, _wanted = _wanted, True
    muted = logging.root.manager.disable
    logging.disable(max(muted, logging.WARNING))
    try:
        yield
    finally:
        _wanted = before
        logging.disable(muted)

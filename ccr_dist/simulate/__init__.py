"""Long training jobs on machines that fail: what cannot be run, simulated; and how often to save.

`advise` answers from closed forms (`closed`), `simulate` from an event model (`events`) of a typed description
(`schema`). Published failure rates lie in `rates/`, each figure with its source. NumPy only.
"""

from __future__ import annotations

from ccr_dist.simulate.advise import Advice, advise
from ccr_dist.simulate.events import simulate
from ccr_dist.simulate.outcome import Outcome
from ccr_dist.simulate.schema import Cause, Job, Rates, load_rates

__all__ = ["Advice", "Cause", "Job", "Outcome", "Rates", "advise", "load_rates", "simulate"]

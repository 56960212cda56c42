"""The planner's predictions for this device beside what is measured on it."""

from __future__ import annotations

import importlib.util

from tests.gpu.part import Found, run


def planned(found: Found) -> None:
    if importlib.util.find_spec("ccr_dist.plan") is None:
        found.skip("this version has no planner (ccr_dist.plan)")


if __name__ == "__main__":
    run(planned)

"""A few steps under torch's profiler, as `runtime.profile` says: RUN/profile/trace.json (chrome://tracing, Perfetto)
and table.txt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ccr_dist.config import ProfileConfig


class ProfiledSteps:
    """Counts the steps of this start of the run on this rank; `window` None: does nothing."""

    def __init__(self, window: ProfileConfig | None, folder: Path, device: torch.device) -> None:
        self._window, self._folder, self._cuda = window, folder, device.type == "cuda"
        self._steps = 0
        self._running: Any = None
        self.step(0)

    def step(self, count: int = 1) -> None:
        """Steps were done; the window opens before its first one and closes behind its last."""
        self._steps += count
        if self._window is None:
            return
        if self._running is None and self._steps == self._window.first - 1:
            kinds = [
                torch.profiler.ProfilerActivity.CPU,
                *([torch.profiler.ProfilerActivity.CUDA] if self._cuda else []),
            ]
            self._running = torch.profiler.profile(activities=kinds, record_shapes=True, profile_memory=True)
            self._running.start()
        elif self._running is not None and self._steps == self._window.first - 1 + self._window.steps:
            self.close()

    def close(self) -> None:
        """Write what was seen, also of a window that the run's end cut short."""
        running, self._running = self._running, None
        if running is None:
            return
        self._window = None
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(self._folder / "trace.json"))
        by = "self_cuda_time_total" if self._cuda else "self_cpu_time_total"
        (self._folder / "table.txt").write_text(
            running.key_averages().table(sort_by=by, row_limit=50), encoding="utf-8"
        )

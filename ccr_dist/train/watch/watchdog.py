"""Ends a rank that gives no sign of life, and says where it stands: one hanging rank holds up all others, which then
wait in a collective.

Every rank watches itself. The rank to blame is the one whose record names another part of the step than the others' do.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ccr_dist.heartbeat import Watch, end
from ccr_dist.train.record.phases import Phases


class Watchdog(Watch):
    """A context manager; inside it, a rank that enters no phase for `silence_s` seconds ends with HangError's exit
    code.

    Stacks of all threads go to stderr and RUN/hang/rank-N.txt, behind a line that names rank, step and phase. Time in
    which the process is stopped does not count.
    """

    def __init__(self, phases: Phases, *, silence_s: float, rank: int, run: Path) -> None:
        super().__init__(lambda: None, 60.0, lambda: str(phases), silence_s)
        self._rank, self._record = rank, run / "hang" / f"rank-{rank}.txt"
        phases.heard = self.heard

    def _give_up(self, doing: str) -> None:
        end(
            f"rank {self._rank} (pid {os.getpid()} on {socket.gethostname()}): {doing}. No sign of life for"
            f" {self._limit_s:g} s (runtime.hang). The rank to blame is the one that is in another part of the step"
            f" than the others, which wait for it: compare {self._record.parent}/rank-*.txt. Start the same command"
            " again to resume from the last checkpoint",
            record=self._record,
            linger_s=min(30.0, self._limit_s / 4),
        )

"""What is known of a machine, or of several, and what is wrong there: `doctor.py` and `network.py` fill it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class MachineReport:
    """Facts and problems of one machine.

    Attributes:
        facts: section -> name -> value.
        problems: {"problem": what is wrong, "do": what to do about it}.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)

    def problem(self, what: str, do: str) -> None:
        """Add a problem.

        Args:
            what: what is wrong.
            do: what the user can do about it.
        """
        self.problems.append({"problem": what, "do": do})

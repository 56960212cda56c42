"""Decides what happens to a job whose command has ended: one table for clusters and single machines. Pure functions.

The first matching rule decides. "Strikes" are consecutive counted attempts without progress; after more than `retries`
of them the job is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ccr_dist import errors

Action = Literal["done", "again", "fail", "leave"]
NODE = 11  # exit code of a node that is not fit (slurm/node.sh, preflight.py)
NEVER = (errors.ConfigError, errors.DataError, errors.DataBudgetError, errors.CheckpointError, errors.OutOfMemoryError)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        code: The most specific exit code of all processes.
        taken: Whether SLURM has already taken the job away (cancelled, requeued, node lost) and handles it itself.
        preempted: Whether SLURM is about to take it away.
        warned: Whether the batch script received a signal.
        held: Whether a person asked to stop (RUN/stop).
        progressed: Whether more is committed than when the attempt began.
        strikes: Strikes of the attempts before this one.
        retries: Strikes that are allowed.
        blamed: Nodes to avoid if the code says that a node is at fault.
        all_blamed: Whether every one of several nodes is blamed.
        nonfinite_before: Whether an earlier attempt ended with values that are not finite.
    """

    code: int
    taken: bool = False
    preempted: bool = False
    warned: bool = False
    held: bool = False
    progressed: bool = False
    strikes: int = 0
    retries: int = 3
    blamed: frozenset[str] = frozenset()
    all_blamed: bool = False
    nonfinite_before: bool = False

    @property
    def spent(self) -> bool:
        """Whether one more strike would be too many."""
        return not self.progressed and self.strikes >= self.retries


@dataclass(frozen=True)
class Decision:
    """What to do with the job.

    Attributes:
        action: "done", "again", "fail", or "leave" it to SLURM.
        why: Name of the rule.
        counted: Whether it is a strike if there was no progress.
        back: Whether to resume from the checkpoint before the newest.
        exclude: Nodes to avoid.
    """

    action: Action
    why: str
    counted: bool = False
    back: bool = False
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rule:
    """A rule of TABLE: which ends it matches, and what follows (as in `Decision`).

    Attributes:
        exclude: Whether to avoid the blamed nodes.
    """

    name: str
    fits: Callable[[Ended], bool]
    action: Action
    counted: bool = False
    back: bool = False
    exclude: bool = False


def _code(*kinds: type[errors.CcrError]) -> Callable[[Ended], bool]:
    codes = {kind.exit_code for kind in kinds}
    return lambda ended: ended.code in codes


TABLE = (
    Rule("done", lambda e: e.code == errors.DONE, "done"),
    Rule("wrong config, wrong or too much bad data, damaged checkpoint, out of memory", _code(*NEVER), "fail"),
    Rule("another process works on the same run", _code(errors.HeldError), "fail"),
    Rule("cancelled, requeued, or its node lost: SLURM goes on with it", lambda e: e.taken, "leave"),
    Rule("a person asked to stop", lambda e: e.held and e.code == errors.STOPPED, "fail"),
    Rule("preempted", lambda e: e.preempted, "again"),
    Rule("not a number, again", lambda e: e.code == errors.NonFiniteError.exit_code and e.nonfinite_before, "fail"),
    Rule(
        "not a number: once more, from the checkpoint before",
        _code(errors.NonFiniteError),
        "again",
        counted=True,
        back=True,
    ),
    Rule("no node is fit", lambda e: e.code == NODE and e.all_blamed, "fail"),
    Rule("too often without progress", lambda e: e.spent, "fail", counted=True),
    Rule("a node is not fit", lambda e: e.code == NODE, "again", counted=True, exclude=True),
    Rule("hang, or a dead device", _code(errors.HangError), "again", counted=True, exclude=True),
    Rule("time limit", lambda e: e.warned, "again", counted=True),
    Rule("stopped, or others still work on it", lambda e: e.code == errors.STOPPED, "again", counted=True),
    Rule("storage or engine failed", _code(errors.StorageError, errors.EngineError), "again", counted=True),
    Rule("crash", lambda e: True, "again", counted=True),
)


def decide(ended: Ended) -> Decision:
    """Apply the first matching rule of TABLE."""
    rule = next(rule for rule in TABLE if rule.fits(ended))
    exclude = ended.blamed if rule.exclude and not ended.all_blamed else frozenset[str]()
    return Decision(rule.action, rule.name, counted=rule.counted, back=rule.back, exclude=exclude)

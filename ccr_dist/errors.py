"""Errors that a user can act on, and the exit code that each one ends a process with.

Every message names the file, key or item, what was expected and what to do. The exit codes are a contract with whoever started the
process (a shell, SLURM): they say whether trying again can help. Anything not listed here is a bug and ends with a traceback and code 1.
"""

from __future__ import annotations

DONE = 0
CRASH = 1
STOPPED = 75  # asked to stop, state saved: start the same command again (BSD's EX_TEMPFAIL)


class CcrError(Exception):
    """Base of all errors that are shown as a message, without a traceback."""

    exit_code = CRASH


class ConfigError(CcrError, ValueError):
    """The request itself is wrong; trying again cannot help."""

    exit_code = 2


class DataError(CcrError, ValueError):
    """A dataset, shard or item is not what its record says."""

    exit_code = 3


class DataBudgetError(DataError):
    """More broken items than the budget allows."""

    exit_code = 4


class StorageError(CcrError, OSError):
    """Reading or writing kept failing after retries, or the disk is full; what was committed before is intact."""

    exit_code = 5


class EngineError(CcrError, RuntimeError):
    """A generation engine (MT system, MLLM) is missing, died or answers nonsense."""

    exit_code = 6


class NonFiniteError(CcrError, ArithmeticError):
    """The loss or the gradient norm stopped being finite."""

    exit_code = 7


class CheckpointError(CcrError, ValueError):
    """A checkpoint is damaged or belongs to another run."""

    exit_code = 8


class HangError(CcrError, RuntimeError):
    """The engine, or a rank in training, gave no sign of life for too long: perhaps a dead device; another node may do better."""

    exit_code = 9


class SupersededError(CcrError, RuntimeError):
    """A later attempt of the same job works on the same run; what this process would still write is not wanted."""

    exit_code = 12


class OutOfMemoryError(CcrError, MemoryError):
    """The device's or the machine's memory does not hold a step; the same again will not fit either."""

    exit_code = 10

"""`accelerate launch` that ends as what it started: python -m ccr_dist.launcher OPTIONS -m ccr_dist train ...

Takes the same options, and for `--config_file` also the name of a launch profile that comes with ccr-dist. accelerate
itself ends with exit code 1 and a traceback of its own, whatever a process failed with; here the message of the process
that failed first stays the last but one line, and its exit code is this one's.

SIGTERM asks the processes to save and to end, for as long as that takes. Containers need it: only their first process
gets the signal, and torch's launcher would kill its processes 30 s after it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ccr_dist import errors, resources, stopfile

QUIET = "torch.distributed.elastic.multiprocessing.api"  # it reports each failed process, as the last line here does


def main() -> None:
    with errors.boundary(), _passing_on_sigterm():
        try:
            from accelerate.commands.launch import launch_command, launch_command_parser
            from torch.distributed.elastic.multiprocessing.api import SignalException
            from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        except ImportError as error:
            raise errors.ConfigError(
                f"several processes need accelerate: pip install 'ccr-dist[train]' ({error})"
            ) from None
        arguments = launch_command_parser().parse_args()
        if arguments.config_file and not Path(arguments.config_file).is_file():
            arguments.config_file = str(resources.LAUNCH.find(arguments.config_file))
        logging.getLogger(QUIET).setLevel(logging.CRITICAL)
        try:
            launch_command(arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            sys.exit(ended(f"rank {rank} (process {failure.pid})", failure.exitcode))
        except subprocess.CalledProcessError as error:  # a single process, or DeepSpeed's own launcher of several hosts
            sys.exit(ended("the process", error.returncode))
        except SignalException as error:
            sys.exit(128 + error.sigval)


@contextmanager
def _passing_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM makes the stop file that the processes look for (`stopfile.py`)."""
    with tempfile.TemporaryDirectory(prefix="ccr-dist-launcher-") as folder:
        stop = Path(folder) / "stop"
        others = os.environ.get(stopfile.VARIABLE)
        os.environ[stopfile.VARIABLE] = os.pathsep.join([str(stop), *([others] if others else [])])
        os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT")  # torch's launcher: all but SIGTERM

        def hear(number: int, frame: FrameType | None) -> None:
            stop.touch()

        signal.signal(signal.SIGTERM, hear)
        yield


def ended(who: str, code: int) -> int:
    """Prints how a process ended.

    Args:
        who: the process.
        code: its exit code; of one that a signal ended, minus the signal's number.

    Returns:
        The exit code as a shell has it.
    """
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    print(f"launcher: {who} {how}; its message is above", file=sys.stderr)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    main()

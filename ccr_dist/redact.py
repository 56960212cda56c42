"""What must not be printed or kept: passwords in addresses, keys in commands, secrets in the environment."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

HIDDEN = "***"

_NAME = (
    r"(?:api|access|private|secret|account)?[_-]?key(?:[_-]?id)?|\w*token|\w*pass(?:w(?:or)?d|phrase)?|\w*secret|credentials?"
    r"|sig(?:nature)?|jwt|x-amz-[a-z-]+"
)
_USER = re.compile(r"(?<=://)[^/?#\s@'\"]+@")
_QUERY = re.compile(rf"(?<=[?&])({_NAME})=[^&#;,)\s'\"]*", re.IGNORECASE)
_OPTION = re.compile(rf"^(-*(?:[\w.]+\.)?(?:{_NAME}))=(.*)$", re.IGNORECASE | re.DOTALL)
_VARIABLE = re.compile(r"TOKEN|KEY|PASS|PWD|SECRET|JWT|CREDENTIAL|AUTH|COOKIE|CERT", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """The text without the secrets in its URLs: user names, passwords, and query values that look like keys."""
    return _QUERY.sub(rf"\1={HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def command_line(argv: Iterable[str] | None = None) -> str:
    """The command of this process as a shell command, for people and for provenance, without secrets."""
    if argv is None:
        argv = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(_OPTION.sub(rf"\1={HIDDEN}", without_secrets(word)) for word in argv)


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable shows that its value is a secret."""
    return bool(_VARIABLE.search(variable))

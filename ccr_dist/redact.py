"""What must not be printed or kept: passwords in addresses, keys in commands, secrets in the environment; and what is
not for everybody: places and machines.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


_WHOLE = re.compile(r"(\w[\w.-]*=|local-dir:|file://)?(/.+)", re.DOTALL)  # a word that is a path, with blanks or not
_PATH = re.compile(r"(?:(?<=file://)|(?<![\w.~/-]))/(?!/)[^\s'\"`,;:()\[\]{}<>|]+")
_HOST = re.compile(r"(?<=http://)[^/\s:'\"]+|(?<=https://)[^/\s:'\"]+")


def without_places(value: Any) -> Any:
    """A JSON value as it may be shown to everybody: its texts without folders, users and machines. A path below the
    current folder becomes relative to it, of any other its last name is left. Values of the key `command` are shell
    commands. Keys, and addresses of the internet, are kept.
    """
    if isinstance(value, dict):
        return {key: _of_command(of) if key == "command" else without_places(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    if not isinstance(value, str):
        return value
    if whole := _WHOLE.fullmatch(value):
        return f"{whole[1] or ''}{_place(whole[2])}"
    return _HOST.sub(lambda found: _host(found[0]), _PATH.sub(lambda found: _place(found[0]), value))


def _of_command(command: Any) -> Any:
    if not isinstance(command, str):
        return without_places(command)
    try:
        words = shlex.split(command)
    except ValueError:  # not written by `command_line`
        return without_places(command)
    return shlex.join(map(without_places, words))


def _place(path: str) -> str:
    place, here, home = Path(os.path.normpath(path)), Path.cwd(), Path.home()
    if place.is_relative_to(here) and (here == home or not home.is_relative_to(here)):
        return str(place.relative_to(here))
    if place == home or place.parent in (home.parent, Path("/home"), Path("/Users")):
        return "~"
    return place.name or "/"


def _host(name: str) -> str:
    """The name of a machine in an address, where everybody may know it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name if "." in name and not name.endswith((".local", ".internal", ".lan")) else HIDDEN
    return HIDDEN

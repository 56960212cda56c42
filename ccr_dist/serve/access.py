"""Who may ask: names of this server, tokens, and pages of other sites.

On loopback everybody on this machine may ask, but no page of another site: a name that leads to 127.0.0.1 (DNS
rebinding) is refused by the header Host, a request from another site by Sec-Fetch-Site, and no answer allows other
origins. Elsewhere a token is needed.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from ccr_dist.errors import ConfigError

LEAST = 16  # characters of a token
COOKIE = "ccr-dist-session"


class Access:
    """The rules of one server.

    Args:
        host: that it listens on.
        names: further names that it may be called by.
        token: that clients must know; None: nobody is asked.
    """

    def __init__(self, host: str, names: tuple[str, ...] = (), token: str | None = None) -> None:
        self.loopback = is_loopback(host)
        self._names = {"localhost", host.lower(), *(name.lower() for name in names)}
        self._token = token.encode() if token else None
        self._session = secrets.token_urlsafe(32).encode()

    @property
    def needs_token(self) -> bool:
        """Whether clients are asked for the token."""
        return self._token is not None

    def hides(self, text: str) -> str:
        """A text without the token."""
        return text.replace(self._token.decode(), "***") if self._token else text

    def knows(self, host: str) -> bool:
        """Whether the header Host names this server. An address cannot be rebound; on loopback only its own count."""
        name = _without_port(host)
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def lets_in(self, headers: Mapping[str, str]) -> bool:
        """Whether a request has the token (`Authorization: Bearer ...`) or the cookie of a page that gave it."""
        if self._token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self._token):
            return True
        return _same(_cookie(headers.get("cookie", "")), self._session)

    def cookie(self, token: str) -> str | None:
        """The header Set-Cookie for a page that knows the token; None for a wrong one. The cookie is not the token, and
        is good until the server ends.
        """
        if self._token is None or not _same(token, self._token):
            return None
        return f"{COOKIE}={self._session.decode()}; HttpOnly; SameSite=Strict; Path=/"


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def chosen_token(host: str, *, token: str | None, file: Path | None, none: bool) -> str | None:
    """The token of a server.

    Args:
        host: that it listens on.
        token: given on the command line.
        file: whose first line it is.
        none: `--no-token`.

    Returns:
        The token, or None where none is needed.

    Raises:
        ConfigError: two ways were given, none where one is needed, or it is too short.
    """
    given = [name for name, on in (("--token", token), ("--token-file", file), ("--no-token", none)) if on]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: give one of them")
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").partition("\n")[0].strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: not text; expected a token in its first line") from None
    if token is None and file is None:
        if none or is_loopback(host):
            return None
        raise ConfigError(
            f"--host {host}: everybody in that network could search and see the pictures. Give a token that they must"
            " know (--token-file FILE), or say that none is needed (--no-token)"
        )
    where = f"{file}" if file is not None else "--token"
    if not token or len(token) < LEAST or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigError(
            f"{where}: expected a token of at least {LEAST} letters, digits and signs without spaces, such as"
            " `openssl rand -hex 16` prints"
        )
    return token


def _same(given: str, wanted: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted)


def _cookie(header: str) -> str:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _without_port(host: str) -> str:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?", host.strip())
    return found.group(1).lower().rstrip(".") if found else ""

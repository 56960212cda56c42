"""Sends one request to a server with an OpenAI-compatible chat API and interprets its response. `openai_client.py`
decides when requests are sent.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from ccr_dist.errors import ConfigError, EngineError
from ccr_dist.generate.engines import completion
from ccr_dist.generate.engines.generator import Answer
from ccr_dist.generate.engines.openai_options import OpenAiOptions
from ccr_dist.generate.engines.traffic import retry_after

_NO_ROOM = (429, 503, 529)
_MAY_PASS = (408, 409, 421, 425)
_UNPAID = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_TURNS_TO_GET = (301, 302, 303)
_NOT_TAKEN = r"un(?:supported|known|recognized|expected)|not (?:supported|permitted|allowed)|deprecated|extra"
_RENAMED = re.compile(
    rf"max_tokens.*(?:{_NOT_TAKEN}|max_completion_tokens)|(?:{_NOT_TAKEN}).*max_tokens", re.IGNORECASE | re.DOTALL
)
# a refusal of the item, whatever parameters it names
_TOO_LONG = re.compile(r"too (?:large|long|many)|context", re.IGNORECASE)
_TRANSPORTS = ("anyio", "h11", "httpcore", "httpcore2", "httpx", "httpx2", "ssl")


class RequestRefused(Exception):
    """The server refuses a request, and would refuse it again."""


class Fault(Exception):
    """A request failed, but may succeed later.

    Args:
        said: What happened.
        no_room: Whether the server is overloaded.
        wait_s: Seconds that the server asks to wait, or None.
        late: Whether there was no answer within `timeout_s`.
    """

    def __init__(self, said: str, *, no_room: bool = False, wait_s: float | None = None, late: bool = False) -> None:
        super().__init__(said)
        self.no_room, self.wait_s, self.late = no_room, wait_s, late


class Server:
    """The HTTP side of a server. Used in the thread of one event loop.

    Args:
        library: The module `openai`.
        options: The engine's options.

    Raises:
        ConfigError: OPENAI_BASE_URL or OPENAI_API_KEY is malformed.
    """

    def __init__(self, library: Any, options: OpenAiOptions) -> None:
        self._library, self._options = library, options
        url = urlsplit(options.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError("OPENAI_BASE_URL: expected http://HOST:PORT/v1 or https://...")
        self.key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"  # own servers need none
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError(
                "OPENAI_API_KEY: holds characters that no key has (line breaks, or other than ASCII); set it again"
            )
        self.where = urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path.rstrip("/") + "/", "", ""))
        secrets = (self.key, url.username, url.password, *dict(parse_qsl(url.query)).values())
        self._secrets = [secret for secret in secrets if secret and secret != "none"]
        self._client = library.AsyncOpenAI(
            base_url=urlunsplit((url.scheme, url.netloc, url.path, "", "")),
            default_query=dict(parse_qsl(url.query)),
            api_key=self.key,
            timeout=options.timeout_s,
            max_retries=0,
        )
        self._forms: frozenset[str] = frozenset()  # forms in which this server accepts requests

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def models(self) -> list[str]:
        """Names of the server's models.

        Raises:
            RequestRefused: The server does not list its models.
            Fault: The request failed, but may succeed later.
            EngineError: The server cannot be used.
        """
        try:
            payload = await self._send(self._client.models.with_raw_response.list)
        except completion.Unreadable as e:
            raise RequestRefused(self._clean(str(e))) from None
        listed = payload.get("data")
        if not isinstance(listed, list):
            raise RequestRefused("it lists no models")
        return [str(model["id"]) for model in listed if isinstance(model, dict) and "id" in model]

    async def ask(self, body: dict[str, Any], name: str) -> Answer:
        """Send a request in the first form that the server accepts.

        Args:
            body: The request, in the usual form.
            name: The item, for messages.

        Returns:
            The answer; a DataError for one that the server filtered.

        Raises:
            RequestRefused: The server refuses the request in every form.
            Fault: The request failed, but may succeed later.
            EngineError: The server cannot be used.
        """
        forms, first = self._forms, None
        while True:
            sent, wrapped = _formed(body, forms)
            try:
                payload = await self._send(self._client.chat.completions.with_raw_response.create, sent)
                self._forms |= forms
                return completion.read(payload, name, max_tokens=body["max_tokens"], wrapped=wrapped)
            except completion.Unreadable as e:
                raise Fault(self._clean(str(e))) from None
            except RequestRefused as e:
                first = first or e
                form = _other_form(str(e), sent, forms)
                if form is None:
                    raise (
                        first if str(first) == str(e) else RequestRefused(f"{first}; in another form: {e}")
                    ) from None
                forms |= {form}

    async def _send(self, call: Any, body: dict[str, Any] | None = None) -> dict[str, Any]:
        library = self._library
        try:
            async with asyncio.timeout(self._options.timeout_s):
                raw = await call(**body or {})
        except library.APIStatusError as e:
            raise self._status(e.status_code, self._said(e), e) from None
        except (TimeoutError, library.APITimeoutError):
            raise Fault(f"no whole answer within timeout_s {self._options.timeout_s:g}", late=True) from None
        except UnicodeEncodeError as e:
            raise RequestRefused(f"its text is no valid Unicode ({e.reason})") from None
        except Exception as e:  # connections break in many ways, and versions of the library wrap them differently
            if (
                not isinstance(e, library.OpenAIError | OSError)
                and type(e).__module__.partition(".")[0] not in _TRANSPORTS
            ):
                raise
            raise Fault(self._said(e)) from None
        response = raw.http_response
        if any(hop.status_code in _TURNS_TO_GET for hop in response.history):
            raise self._moved(response.url)
        try:
            payload = completion.parsed(response.content)
        except completion.Unreadable as e:
            raise completion.Unreadable(
                f"{response.headers.get('content-type', 'no content type')} instead of an answer: {e}"
            ) from None
        if (error := completion.error_in(payload)) is not None:
            raise self._status(error[0], self._clean(f"status {response.status_code}, but an error: {error[1]}"), None)
        return payload

    def _status(self, status: int, said: str, error: Any) -> Exception:
        """The error that a status means: EngineError, Fault or RequestRefused."""
        headers = error.response.headers if error is not None else {}
        if 300 <= status < 400:
            return self._moved(headers.get("location", "another address"))
        if error is not None and any(hop.status_code in _TURNS_TO_GET for hop in error.response.history):
            return self._moved(error.response.url)
        if status in (401, 402) or (status == 429 and any(word in said for word in _UNPAID)):
            return EngineError(
                f"engine 'openai': {self.where} answers {said}; see base_url, OPENAI_API_KEY and your account"
            )
        if status in _NO_ROOM or status in _MAY_PASS or (status >= 500 and status != 501):
            wait_s = retry_after(headers.get("retry-after"), headers.get("date"))
            if wait_s is not None and wait_s > self._options.patience_s:
                return EngineError(
                    f"engine 'openai': {self.where} answers {said} and asks to wait {wait_s:.0f} s, longer than"
                    f" patience_s {self._options.patience_s:g}. Start the same command again later: what was answered"
                    " is kept"
                )
            return Fault(said, no_room=status in _NO_ROOM, wait_s=wait_s)
        return RequestRefused(said)

    def _moved(self, where: object) -> EngineError:
        to = urlsplit(str(where))
        shown = urlunsplit((to.scheme, to.netloc.rpartition("@")[2], to.path, "", ""))
        return EngineError(
            f"engine 'openai': {self.where} sends requests on to {shown}; give the address behind it as base_url"
        )

    def _said(self, error: Any) -> str:
        cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ is not None else ""
        status, code = getattr(error, "status_code", ""), getattr(error, "code", None)
        said = f"{status} {type(error).__name__}: {str(error)[:300]}{f' [{code}]' if code else ''}{cause[:300]}"
        return self._clean(said.strip())

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return "".join(c if c.isprintable() else " " for c in text)


def _formed(body: dict[str, Any], forms: frozenset[str]) -> tuple[dict[str, Any], bool]:
    """The request in the given forms, and whether its answer is wrapped in an object."""
    body, wrapped = dict(body), False
    if "max_completion_tokens" in forms:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if "object" in forms and _bare_schema(body):
        schema = body["response_format"]["json_schema"]
        properties = {completion.WRAPPED: schema["schema"]}
        root = {
            "type": "object",
            "properties": properties,
            "required": [completion.WRAPPED],
            "additionalProperties": False,
        }
        body["response_format"] = {"type": "json_schema", "json_schema": {**schema, "schema": root}}
        wrapped = True
    return body, wrapped


def _bare_schema(body: dict[str, Any]) -> bool:
    return "response_format" in body and body["response_format"]["json_schema"]["schema"].get("type") != "object"


def _other_form(said: str, sent: dict[str, Any], forms: frozenset[str]) -> str | None:
    """Another form with the same meaning, which the server may accept after this refusal; None if there is none."""
    if "max_tokens" in sent and _RENAMED.search(said) and not _TOO_LONG.search(said):
        return "max_completion_tokens"
    if _bare_schema(sent) and "object" not in forms and ("schema" in said.lower() or "response_format" in said):
        return "object"
    return None

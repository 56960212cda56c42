"""How much one client, and all of them together, may take of a server."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body: bytes of the body of a request.
        pixels: of a picture that a client sends.
        text: characters of a query.
        input: characters of a text of /v1/embeddings.
        hits: of one answer.
        values: of a label that are listed.
        inputs: texts and pictures of one call of /v1/embeddings.
        header: bytes of the head of a request.
        head_s: until the head of a request must be there, from its first byte or from the connection on.
        body_s: until its body must be there.
        read_s: until a client must have read some of what it asked for.
        connections: open ones; more are closed at once.
        waiting: calls of the model that wait for their turn; more are refused.
        wait_s: how long one waits; then it is refused.
        batch: texts of different clients in one call of the model.
        cache: bytes of thumbnails that are kept.
        decoding: thumbnails that are made at a time.
        uploads: requests with a body that are read and answered at a time: their pictures are held in memory.
        files: whole files that are sent at a time.
    """

    body: int = 20_000_000
    pixels: int = 50_000_000
    text: int = 1000
    input: int = 20_000
    hits: int = 200
    values: int = 200
    inputs: int = 256
    header: int = 16_384
    head_s: float = 10.0
    body_s: float = 30.0
    read_s: float = 30.0
    connections: int = 500
    waiting: int = 256
    wait_s: float = 30.0
    batch: int = 32
    cache: int = 100_000_000
    decoding: int = 2
    uploads: int = 4
    files: int = 8


class Refused(HTTPException):
    """A request that is not answered. Its message tells nothing that the client may not know.

    Args:
        status: of the HTTP answer.
        message: for the client.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)

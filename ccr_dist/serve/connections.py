"""HTTP connections that do not wait for ever: for the head of a request, for a client that does not read its answer,
for the rest of a body that nobody needs. And not too many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ccr_dist.serve.limits import Limits


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with the bounds `head_s`, `read_s` and `connections`."""

    class Bounded(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._end()
            else:
                self._head = self.loop.call_later(limits.head_s, self._end)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head, self._unread):
                if timer:
                    timer.cancel()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            expected = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            if self._head and not expected:
                self._head.cancel()
                self._head = None
            elif expected and not self._head:
                self._head = self.loop.call_later(limits.head_s, self._end)

        def on_response_complete(self) -> None:
            unread_body = self.conn.their_state is h11.SEND_BODY
            super().on_response_complete()
            if unread_body:
                self.transport.close()
            self._end_soon()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._end_soon()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.read_s, self._end)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread:
                self._unread.cancel()

        def _end_soon(self) -> None:
            """A transport that is closed still waits until the client has read all."""
            if self.transport.is_closing():
                self.loop.call_later(limits.read_s, self._end)

        def _end(self) -> None:
            """At once: the kernel, too, gives up what the client has not read."""
            with contextlib.suppress(OSError):  # it is closed already
                its: socket.socket = self.transport.get_extra_info("socket")
                its.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    return Bounded

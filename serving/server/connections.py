"""REST's connections: how many are allowed, which are closed, and how clients that closed their half are answered.

aiohttp closes a connection as soon as its client stops writing. But a client may send its request, close its half and
then read; one that has given up looks the same until something is sent to it. So the server sends a `100 Continue`,
which every HTTP/1.1 client skips (RFC 9110, 15.2). A closed socket answers it with a reset, so nothing is computed for
a client that is gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Any

from aiohttp import HttpVersion11, web

from serving.server.errors import HTTP_STATUS, Code

_IDLE_SECONDS = 75.0
"""A connection is closed after being silent (no request came, no answer went) for this long, at most twice as long."""
_LINGERING_SECONDS = 1.0
"""How long the rest of a body is still read if its answer did not wait for it."""
_BEGIN_SECONDS = 0.01
"""The longest that aiohttp takes from the last byte of a request to its handler."""
_RESET_SECONDS = 0.05
"""Time between two checks of whether a client that has closed its half is gone."""
_TCP_CLOSED = 7
"""First byte of Linux's `tcp_info` of a connection that was reset (TCP_CLOSE)."""


class Connection(web.RequestHandler):
    """A client's connection, which answers even a client that has closed its half.

    Attributes:
        request: the one being answered; None between two.
        is_half_closed: whether the client has said that it sends nothing more.
    """

    __slots__ = ("is_half_closed", "request")

    def __init__(self, server: web.Server) -> None:
        # No access log, which aiohttp's annotation does not allow for; and bodies as sent, see `compression`.
        options: dict[str, Any] = {
            "access_log": None,
            "lingering_time": _LINGERING_SECONDS,
            "auto_decompress": False,
        }
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self.request: web.Request | None = None
        self.is_half_closed = False

    def begin(self, request: web.Request) -> None:
        """Called when a handler gets the request."""
        self.request = request
        if self.is_half_closed:
            self._go_on(request)

    def end(self) -> None:
        """Called when the handler has answered, or was cancelled."""
        self.request = None

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's closes by returning None
        """Called when the client has closed its half, or all; True keeps the other half open."""
        self.is_half_closed = True
        if self.request:
            self._go_on(self.request)
        else:
            asyncio.get_running_loop().call_later(_BEGIN_SECONDS, self._close_idle)
        return True

    def unread_bytes(self) -> int:
        """Number of bytes of answers that have not reached the client's machine yet.

        Includes those in the socket, which takes more only when a third of it, mostly a megabyte or more, has gone.
        """
        if not self.transport:
            return 0
        in_socket = bytearray(4)
        fcntl.ioctl(self._socket().fileno(), termios.TIOCOUTQ, in_socket)
        return self.transport.get_write_buffer_size() + int.from_bytes(in_socket, sys.byteorder)

    def _go_on(self, request: web.Request) -> None:
        if not request.content.is_eof():
            length = request.content_length
            missing = "the body was sent" if length is None else f"its {length} bytes were sent"
            request.content.set_exception(
                web.RequestPayloadError(f"the client closed its half of the connection before {missing}")
            )
        elif self.transport and request.version >= HttpVersion11:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._end_if_reset(request)

    def _end_if_reset(self, request: web.Request) -> None:
        """Cancels the handler if the client is gone: asyncio no longer watches a connection that is half closed."""
        if not self.transport or self.request is not request:
            return
        if self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSED:
            self.transport.abort()
        else:
            asyncio.get_running_loop().call_later(_RESET_SECONDS, self._end_if_reset, request)

    def _close_idle(self) -> None:
        if self.transport and not self.request:
            self.transport.close()

    def _socket(self) -> socket.socket:
        assert self.transport
        found: socket.socket = self.transport.get_extra_info("socket")
        return found


class Connections:
    """All connections of a server."""

    def __init__(self, most: int):
        self._most = most
        self._silent: dict[Connection, int] = {}

    def accept(self, server: web.Server) -> asyncio.BaseProtocol:
        """The protocol that answers a new connection."""
        return Connection(server) if len(server.connections) < self._most else _NoRoom()

    def begin(self, request: web.Request) -> Connection:
        """The connection of a request, which no longer counts as silent."""
        connection = request.protocol
        assert isinstance(connection, Connection)  # `accept` makes no others
        self._silent.pop(connection, None)
        connection.begin(request)
        return connection

    async def end_silent(self, server: web.Server) -> None:
        """Closes connections without a request, until cancelled: aiohttp waits forever for a complete head.

        It also waits forever for a client that does not read its answer. Each connection holds one of the process's
        file descriptors.
        """
        while True:
            idle = [one for one in server.connections if isinstance(one, Connection) and not one.request]
            self._silent = {one: one.unread_bytes() for one in idle}
            await asyncio.sleep(_IDLE_SECONDS)
            for connection, unread in self._silent.items():
                if not unread:
                    connection.force_close()
                elif connection.unread_bytes() == unread and connection.transport:
                    connection.transport.abort()  # `close` would still wait until all is read


class _NoRoom(asyncio.Protocol):
    """Answers UNAVAILABLE to any request and closes: a client may open as many connections as it likes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        status = HTTP_STATUS[Code.UNAVAILABLE]
        transport.write(b"HTTP/1.1 %d Full\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
        transport.close()

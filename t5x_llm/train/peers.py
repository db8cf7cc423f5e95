"""Lets every process of a run learn at once that another is gone.

When a process dies, a collective fails on those that were talking to it and hangs on the others,
until JAX's heartbeat notices (100 s) and aborts them. The kernel closes the connections of a dead
process at once: so every process keeps one to the first, which informs the others.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_llm.core.errors import PeerLost

_BYE, _LOST = b".", b"!"
_TOKEN, _INDEX, _CARD = 8, 4, 128  # bytes
_CONNECT_SECONDS = 20.0
# A host that is switched off closes nothing; it counts as dead after 30 + 6 x 10 seconds.
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))


class Peers:
    """Calls ``on_lost`` when another process of the run ends without ``close``.

    All processes make one at the same time, and need their devices for it. It is a context manager.

    Args:
      on_lost: called once, in a thread.
      warn: called with a line of text if the first process cannot be reached.
    """

    def __init__(self, on_lost: Callable[[PeerLost], Any], warn: Callable[[str], Any] = print):
        self._on_lost, self._closed = on_lost, threading.Event()
        self._lock = threading.Lock()
        self._others: dict[socket.socket, int] = {}
        if jax.process_count() == 1:
            return
        index = jax.process_index()
        listener = _listen() if index == 0 else None
        host, port, token = _shared_address(listener)
        if index == 0 and listener is not None:
            self._start(self._serve, listener, token)
        elif index and port:
            try:
                connection = socket.create_connection((host, port), _CONNECT_SECONDS)
                _keep_alive(connection)
                connection.settimeout(None)
                connection.sendall(token + index.to_bytes(_INDEX))
            except OSError as e:
                warn(
                    f"warning: process 0 cannot be reached at {host}:{port} ({e}); the loss of "
                    "another process will be noticed late"
                )
                return
            self._others[connection] = 0
            self._start(self._follow, connection)

    def close(self) -> None:
        """Says goodbye to the others; losses are not noticed from here on."""
        self._closed.set()
        with self._lock:
            for connection in self._others:
                with contextlib.suppress(OSError):
                    connection.sendall(_BYE)
                    connection.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=function, args=arguments, name="peers", daemon=True).start()

    def _serve(self, listener: socket.socket, token: bytes) -> None:
        """Accepts connections, in the first process, and reports to all when one breaks."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _ in selector.select(1.0):
                    connection: Any = key.fileobj
                    if connection is listener:
                        if (new := self._accept(listener, token)) is not None:
                            selector.register(new, selectors.EVENT_READ)
                        continue
                    heard = _receive(connection, 1)
                    selector.unregister(connection)
                    with self._lock:
                        index = self._others.pop(connection)
                    if heard != _BYE:
                        self._lost(index)
                        return
        listener.close()

    def _accept(self, listener: socket.socket, token: bytes) -> socket.socket | None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.settimeout(5.0)
            greeting = _receive(connection, _TOKEN + _INDEX)
            if greeting[:_TOKEN] == token and len(greeting) == _TOKEN + _INDEX:
                connection.settimeout(None)
                _keep_alive(connection)
                with self._lock:
                    self._others[connection] = int.from_bytes(greeting[_TOKEN:])
                return connection
            connection.close()
        return None

    def _follow(self, connection: socket.socket) -> None:
        """Waits, in another process, for a message of the first, or its end."""
        heard = _receive(connection, 1)
        if heard == _BYE:
            return
        index = _receive(connection, _INDEX) if heard == _LOST else b""
        self._lost(int.from_bytes(index))

    def _lost(self, index: int) -> None:
        if self._closed.is_set():
            return
        with self._lock:
            for connection, other in self._others.items():
                if other:
                    with contextlib.suppress(OSError):
                        connection.sendall(_LOST + index.to_bytes(_INDEX))
        self._on_lost(
            PeerLost(
                f"Process {index} of the run is gone. All must start again; the run continues "
                "from its newest checkpoint."
            )
        )


def _listen() -> socket.socket | None:
    with contextlib.suppress(OSError):
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", 0))
    return None


def _shared_address(listener: socket.socket | None) -> tuple[str, int, bytes]:
    """Gives all processes the host, the port (0 if there is none) and the token of the first."""
    card = np.zeros(_CARD, np.uint8)
    if listener is not None:
        given = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
        host = given.rpartition(":")[0].strip("[]")
        if not host:
            with contextlib.suppress(OSError):
                host = socket.gethostbyname(socket.gethostname())
        port = listener.getsockname()[1]
        text = port.to_bytes(2) + secrets.token_bytes(_TOKEN) + host.encode()
        if len(text) <= _CARD:
            card[: len(text)] = np.frombuffer(text, np.uint8)
    text = np.asarray(multihost_utils.broadcast_one_to_all(card), np.uint8).tobytes()
    host = text[2 + _TOKEN :].rstrip(b"\0").decode()
    return host, int.from_bytes(text[:2]), text[2 : 2 + _TOKEN]


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(connection: socket.socket, size: int) -> bytes:
    """Receives ``size`` bytes, or fewer if the other side is gone."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < size and (more := connection.recv(size - len(data))):
            data += more
    return data

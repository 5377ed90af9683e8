"""A TCP proxy that misbehaves on request: it cuts connections in the middle of a reply, or stops forwarding."""

from __future__ import annotations

import socket
import threading
from collections import deque


class FaultyProxy:
    """Forwards connections to `port`; each fault in `faults` is used up by one reply.

    A fault is ("cut", n): close after n bytes of the reply; or ("stall", 0): forward nothing of it and stay silent.
    """

    def __init__(self, port: int) -> None:
        self.upstream, self.faults, self.dead = port, deque(), False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Close all connections and accept no more."""
        self.dead = True
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        for one in self._sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        self._sockets.clear()

    def _accept(self) -> None:
        while not self.dead:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.dead:
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self.upstream))
            self._sockets += [client, server]
            replied = threading.Event()  # the first bytes are the handshake and the metadata
            threading.Thread(target=self._up, args=(client, server, replied), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server, replied), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        first = True
        try:
            while data := client.recv(65536):
                server.sendall(data)
                if not first:
                    asked.set()
                first = False
        except OSError:
            pass

    def _down(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        try:
            while data := server.recv(65536):
                if asked.is_set() and self.faults:
                    kind, count = self.faults.popleft()
                    if kind == "stall":
                        return
                    client.sendall(data[:count])
                    client.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
        except OSError:
            pass

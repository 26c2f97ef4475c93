"""A wire to the database that can be cut at a chosen moment."""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class TCPProxy:
    """Forwards connections, until a query comes by that it was told to cut at."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._cut_at: Callable[[bytes], bool] = lambda query: False
        self._after_the_answer = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_once(self, text: bytes, *, after_the_server_did_it: bool) -> None:
        """Cut the connection at the next query that contains `text`.

        Either the query never reaches the server, or its answer never comes back.
        """
        self._after_the_answer = after_the_server_did_it
        self._cut_at = lambda query: text in query

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=[client], daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is client and self._cut_at(data):
                        self._cut_at = lambda query: False
                        self.cuts += 1
                        if self._after_the_answer:
                            server.sendall(data)
                            server.recv(1 << 16)
                        return
                    (server if ready is client else client).sendall(data)


@contextmanager
def tcp_proxy_to(host: str, port: int) -> Iterator[TCPProxy]:
    wire = TCPProxy(host, port)
    try:
        yield wire
    finally:
        wire.close()

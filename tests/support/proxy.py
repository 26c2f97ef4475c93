"""A TCP proxy in front of the database that drops a connection at a chosen query."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TCPProxy:
    """Forwards connections to a server. `drop_once()` makes it drop one of them."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._drops: list[tuple[bytes, bool]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.dropped = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def drop_once(self, text: bytes, *, executes_query: bool) -> None:
        """Drop the connection at the next query that contains `text`.

        With `executes_query` the server executes the query and the client gets no result.
        Without it the query never reaches the server.
        """
        self.drop_in_turn((text, executes_query))

    def drop_in_turn(self, *drops: tuple[bytes, bool]) -> None:
        """Drop several connections, each like `drop_once()` and after the one before it."""
        self._drops = list(drops)

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
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is client and self._drops and self._drops[0][0] in data:
                        return self._drop(server, data)
                    (server if source is client else client).sendall(data)

    def _drop(self, server: socket.socket, query: bytes) -> None:
        self.dropped += 1
        _, executes_query = self._drops.pop(0)
        if executes_query:
            server.sendall(query)
            server.recv(1 << 16)


@contextmanager
def tcp_proxy_to(host: str, port: int) -> Iterator[TCPProxy]:
    proxy = TCPProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()

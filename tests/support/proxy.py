"""A TCP proxy in front of the database that drops a connection at a chosen query."""

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.servers import create_certificate

# Begins the client's first packet if it uses TLS: a length of 32 bytes, packet number 1.
TLS_REQUEST = b"\x20\0\0\x01"


class TCPProxy:
    """Forwards connections to a server. `drop_once()` makes it drop one of them.

    Decrypts connections that use TLS, with a certificate that it creates in `folder`.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self._target = (host, port)
        self.certificate, key = create_certificate(folder=folder)
        self._to_client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._to_client.load_cert_chain(self.certificate, key)
        self._to_server = ssl._create_unverified_context()
        # TLS 1.3 also sends packets without data, for which recv() would wait.
        self._to_server.maximum_version = ssl.TLSVersion.TLSv1_2
        self._drops: list[tuple[bytes, bool]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.dropped = 0
        self.tls_requests = 0
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
            client.sendall(server.recv(1 << 16))  # the greeting, which is never encrypted
            if client.recv(len(TLS_REQUEST), socket.MSG_PEEK) != TLS_REQUEST:
                self._forward_queries(client, server)
                return
            self.tls_requests += 1
            server.sendall(client.recv(36))
            with (
                self._to_client.wrap_socket(client, server_side=True) as tls_client,
                self._to_server.wrap_socket(server) as tls_server,
            ):
                self._forward_queries(tls_client, tls_server)

    def _forward_queries(self, client: socket.socket, server: socket.socket) -> None:
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
def tcp_proxy_to(host: str, port: int, folder: Path) -> Iterator[TCPProxy]:
    proxy = TCPProxy(host, port, folder)
    try:
        yield proxy
    finally:
        proxy.close()

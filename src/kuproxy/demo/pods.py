"""What runs in each pod: a real HTTP server and a UDP echo, both with the pod's name in their answers.

`python -m kuproxy.demo.pods NAME HTTP-PORT UDP-PORT` prints `ready` when both listen, and serves until it is ended.
"""

from __future__ import annotations

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = "/large"
LARGE_LENGTH = 100_000  # a few dozen segments, or two GSO frames


def large_body(name: str) -> bytes:
    """What a pod answers to a request for LARGE."""
    line = f"{name}\n".encode()
    return (line * (LARGE_LENGTH // len(line) + 1))[:LARGE_LENGTH]


class Handler(BaseHTTPRequestHandler):
    """Tells the pod's name, in a header and in the body."""

    protocol_version = "HTTP/1.1"  # connections are kept
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True
    name = ""

    def do_GET(self) -> None:
        body = large_body(self.name) if self.path == LARGE else f"{self.name}\n".encode()
        self.send_response(200)
        self.send_header("X-Pod", self.name)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: thousands of requests would be thousands of lines."""


class Server(ThreadingHTTPServer):
    """IPv4 and IPv6 on one socket, with room for a burst of connections."""

    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is its own affair: it counts what failed."""


def echo(opened: socket.socket, name: str) -> None:
    """Answer datagrams with the name, a blank, and what they held."""
    prefix = f"{name} ".encode()
    while True:
        data, peer = opened.recvfrom(65536)
        opened.sendto(prefix + data, peer)


def main() -> None:
    name, http_port, udp_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    Handler.name = name
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    datagrams.bind(("::", udp_port))
    threading.Thread(target=echo, args=(datagrams, name), daemon=True).start()
    server = Server(("::", http_port), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

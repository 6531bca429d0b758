"""Pages of a monitor, for tests: what is shown, and how it is read."""

import socket
import time
from html.parser import HTMLParser

from tapcore.metrics.meter import Batch, Meter
from tapcore.metrics.page import Page
from tapcore.metrics.reading import Snapshot, read_fd


def snapshot(name: str = "vm1") -> Snapshot:
    """A disk that has done something."""
    meter = Meter(Batch(), name, image="/vm/<b>&disk.qcow2", driver="qcow2", size=1 << 30)
    meter.reads += [4096] * 90 + [65536] * 10
    meter.count_moved(30e-6)
    meter.driven_tally[1, 4096, 0, 5, 2000, 20] += 7
    meter.driven_tally[1, 4096, -5, 0, 100, 20] += 1
    return counted(meter)


def counted(meter: Meter) -> Snapshot:
    """What a meter has counted."""
    page = Page.in_memory(meter)
    page.publish()
    seen = read_fd(page.fileno())
    page.close()
    return seen


class Checked(HTMLParser):
    """Tags that end where they have to; what would be loaded."""

    void = frozenset(("meta", "line", "rect", "path"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loaded += [f"{k}={v}" for k, v in attributes if k in ("src", "href", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def get_page(port: int, path: str) -> str:
    """The content of a page that a port of loopback has."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        data = b""
        ended = time.monotonic() + 30
        while (piece := sock.recv(65536)) and time.monotonic() < ended:
            data += piece
    head, _, body = data.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200")
    return body

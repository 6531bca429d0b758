"""Disks over HTTP: for Prometheus, whose own parser has to agree, and for a browser."""

import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from monitored import Checked, get_page, snapshot
from nbd_client import Client
from servedhere import served_here

from tapcore.engine.loop import Loop
from tapcore.metrics.publishing import Metrics
from tapcore.monitor import http
from tapcore.monitor.monitor import Monitor
from tapcore.monitor.webpage import webpage
from tapcore.monitor.webserver import MOST_CLIENTS, WebServer

pytest.importorskip("prometheus_client", reason="tapcore[metrics] is not installed")

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as classic

PAGES: dict[str, http.Page] = {"/": lambda accept: ("text/plain", accept.encode() or b"page")}


def asked(first: str = "GET / HTTP/1.1", *headers: str) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request: status, headers, body."""
    lines = "\r\n".join((first, *(headers or ("Host: localhost:1",)), "", ""))
    head, _, body = http.answer(lines.encode(), PAGES).partition(b"\r\n\r\n")
    status, *rest = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in rest), body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:80", "[::1]", "LOCALHOST:1"])
def test_a_page(host: str) -> None:
    status, headers, body = asked("GET /?x=1 HTTP/1.1", f"Host: {host}")
    assert (status, body) == (200, b"page")
    assert headers["Content-Length"] == "4"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("first", "headers", "status"),
    [
        ("GET /x HTTP/1.1", (), 404),
        ("GET /../etc/passwd HTTP/1.1", (), 404),
        ("POST / HTTP/1.1", (), 405),
        ("GET / HTTP/2.0", (), 505),
        ("GET /", (), 400),
        ("GET http://localhost/ HTTP/1.1", (), 400),
        ("GET / HTTP/1.1", ("Host: evil.example",), 403),
        ("GET / HTTP/1.1", ("Host: localhost.evil.example:80",), 403),
        ("GET / HTTP/1.1", ("X: y",), 403),
        ("GET / HTTP/1.1", ("Host: localhost", "Host: evil"), 400),
        ("GET / HTTP/1.1", ("Host : localhost",), 400),
        ("GET / HTTP/1.1", ("Host: localhost", "X: " + "y" * 9000), 431),
    ],
)
def test_what_is_refused(first: str, headers: tuple[str, ...], status: int) -> None:
    found, answer, body = asked(first, *headers)
    assert found == status
    assert b"page" not in body
    assert ("Allow" in answer) == (status == 405)


def test_head_has_no_body() -> None:
    status, headers, body = asked("HEAD / HTTP/1.1")
    assert (status, headers["Content-Length"], body) == (200, "4", b"")


# ---- the server ---------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[Loop, WebServer]]:
    loop = Loop()
    found = WebServer(loop, 0, PAGES)
    yield loop, found
    found.close()
    loop.close()


def test_who_waits_keeps_nobody_out(server: tuple[Loop, WebServer]) -> None:
    loop, web = server
    idle = []
    for _ in range(MOST_CLIENTS + 3):
        idle.append(socket.create_connection(("127.0.0.1", web.port)))
        loop.run_once(1)
    with socket.create_connection(("127.0.0.1", web.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        loop.run_once(1)
        loop.run_once(1)
        client.settimeout(10)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    for each in idle:
        each.close()


# ---- the pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_prometheus_parses_it(accept: str) -> None:
    monitor = Monitor(lambda: [snapshot(), snapshot('na"me\\\n')])
    kind, body = monitor._prometheus(accept)
    assert ("openmetrics" in kind) == bool(accept)
    families = {each.name: each for each in (openmetrics if accept else classic)(body.decode())}
    assert all(family.documentation for family in families.values())
    assert families["tapcore_requests"].type == "counter"
    assert families["tapcore_request_duration_seconds"].type == "histogram"
    values = {
        (each.name, *sorted(each.labels.items())): each.value
        for family in families.values()
        for each in family.samples
    }
    where = (("disk", "vm1"), ("driver", "qcow2"), ("operation", "read"), ("size", "4k"))
    assert values["tapcore_requests_total", *where] == 90
    assert values["tapcore_request_bytes_total", *where] == 90 * 4096
    assert values["tapcore_request_duration_seconds_count", *where] == 90
    assert values["tapcore_request_duration_seconds_sum", *where] == pytest.approx(90 * 30e-6)
    of_writes = (("disk", "vm1"), ("driver", "qcow2"), ("operation", "write"))
    assert values["tapcore_request_driver_seconds_count", *of_writes] == 8
    bounds = [
        (float(dict(key[1:])["le"]), value)
        for key, value in values.items()
        if key[0] == "tapcore_request_driver_seconds_bucket"
        and {("disk", "vm1"), ("operation", "write")} <= set(key[1:])
    ]
    assert sorted(bounds)[-1] == (float("inf"), 8)
    assert dict(bounds)[0.000128] == 1  # one of 100 µs, seven of 2 ms
    assert dict(bounds)[0.002048] == 8
    assert any("na" in dict(key[1:]).get("disk", "") for key in values)


def test_the_page_for_a_browser() -> None:
    now = snapshot()
    before = attrs.evolve(now, updated=now.updated - 2, cells={})
    kind, body = webpage([(before, now), (now, now)])
    assert kind.startswith("text/html")
    page = Checked()
    page.feed(body.decode())
    assert page.open == []
    assert page.loaded == ["href=/disk/vm1", "href=/disk/vm1", "href=/metrics"]
    assert "script" not in page.seen
    assert page.seen.count("svg") == 4
    assert "<b>&disk.qcow2" in page.text  # escaped in the source, shown as it is
    assert "url(" not in body.decode()
    assert webpage([])[1]


def test_a_server_that_counts_shows_it_and_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    found: list[WebServer] = []

    def begun(metrics: Metrics, loop: Loop) -> WebServer:
        found.append(Monitor(metrics.snapshots).listen(loop, 0))
        return found[0]

    metrics = Metrics(begun=begun)
    with served_here(f"aio:{tmp_path / 'disk'}", metrics=metrics) as here:
        with Client(here.server.uris()[0]) as client:
            client.write(0, b"x" * 4096)
            text = get_page(found[0].port, "/metrics")
        assert 'operation="write",size="4k"} 1.0' in text
        assert "<h2>0</h2>" in get_page(found[0].port, "/")
    assert f"metrics are shown at http://127.0.0.1:{found[0].port}/" in caplog.text

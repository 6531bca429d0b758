"""Logs of servers as syslog and journald get them: what a socket of theirs receives."""

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from tapcore import TapError
from tapcore.cli.failures import Session, end_logging, set_up_logging
from tapcore.cli.logplace import log_to
from tapcore.process import logs
from tapcore.process.logs import (
    StderrLog,
    journal_datagram,
    log_handler,
    severity_of,
    syslog_datagram,
)


@pytest.fixture
def taker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "log")
    monkeypatch.setattr(logs, "_SOCKETS", {"syslog": path, "journald": path})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(10)
        yield sock


@pytest.fixture
def _logging() -> Iterator[None]:
    set_up_logging("info", Session())
    yield
    end_logging()


@pytest.mark.usefixtures("_logging")
def test_syslog_gets_what_blktap_would_send(taker: socket.socket) -> None:
    log_to("syslog")
    logging.getLogger("tapcore.nbd").warning("%s: gone\nand more", "vm1")
    assert taker.recv(9000).decode() == f"<28>TAPDISK[{os.getpid()}]: vm1: gone and more"


@pytest.mark.usefixtures("_logging")
def test_journald_gets_fields(taker: socket.socket) -> None:
    log_to("journald")
    logging.getLogger("tapcore.nbd").error("vm1: gone\nand more")
    data = taker.recv(9000)
    text = b"vm1: gone\nand more"
    assert data.startswith(b"MESSAGE\n" + len(text).to_bytes(8, "little") + text + b"\n")
    fields = dict(line.split("=", 1) for line in data[17 + len(text) :].decode().splitlines())
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("3", "TAPDISK")
    assert (fields["LOGGER"], fields["SYSLOG_PID"]) == ("tapcore.nbd", str(os.getpid()))
    assert fields["CODE_FUNC"] == "test_journald_gets_fields"


@pytest.mark.usefixtures("_logging")
def test_who_takes_the_log_may_be_started_again(taker: socket.socket, tmp_path: Path) -> None:
    log_to("syslog")
    path = tmp_path / "log"
    taker.close()
    path.unlink()
    logging.getLogger("tapcore").error("into the void")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(path))
        again.settimeout(10)
        logging.getLogger("tapcore").error("heard")
        assert again.recv(9000).endswith(b": heard")


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_SOCKETS", {"syslog": str(tmp_path / "none")})
    with pytest.raises(TapError, match="nobody takes the log there"):
        log_handler("syslog")
    with pytest.raises(TapError, match="not to 'x'"):
        log_handler("x")


def test_odd_text() -> None:
    record = logging.LogRecord("a", logging.DEBUG, "f", 1, "\udcff", (), None)
    assert severity_of(logging.DEBUG) == 7
    assert b"\\udcff" in syslog_datagram(record, "\udcff")
    assert b"\\udcff" in journal_datagram(record, "\udcff")


def filled_pipe() -> tuple[int, TextIO]:
    """A pipe that takes nothing more, and the stream that writes to it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    return reader, os.fdopen(writer, "w")


def test_nobody_waits_for_who_does_not_read_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, stream = filled_pipe()
    with stream:
        monkeypatch.setattr("sys.stderr", stream)
        handler = StderrLog()
        for number in range(3):
            handler.emit(record(f"line {number}"))
        while select.select([reader], [], [], 0)[0]:
            assert set(os.read(reader, 4096)) == {ord(".")}
        handler.emit(record("x" * 3000))
        handler.emit(record("the last"))
        lines = os.read(reader, 9000).decode().splitlines()
    os.close(reader)
    assert lines == ["3 lines of the log are lost: nobody read it", "x" * 3000, "the last"]


def test_a_line_longer_than_a_pipe_is_waited_for_as_little(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        StderrLog().emit(record("x" * (1 << 20)))
    os.close(reader)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("tapcore", logging.WARNING, "", 0, text, None, None)


def test_a_server_whose_log_nobody_reads_serves_on(tmp_path: Path) -> None:
    socket_path = tmp_path / "s"
    words = [sys.executable, "-m", "tapcore", "--log-level", "info", "serve", "--socket"]
    with subprocess.Popen(
        [*words, str(socket_path), "ram:64K"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline()
        for _ in range(1200):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(socket_path))
                assert client.recv(18)
                client.sendall(b"nonsense" * 5)
                client.recv(1)  # the end
        server.terminate()
        server.communicate(timeout=20)
    assert server.returncode == 0

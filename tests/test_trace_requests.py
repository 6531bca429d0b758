"""`TAPCORE_TRACE=requests`, as a server writes it: a line a request, with its stations."""

import re
from pathlib import Path

import pytest
from nbd_client import FLUSH, READ, TRIM, WRITE
from nbdwire import Wire, opened

LINE = re.compile(
    r"trace [\d.]+ request (read|write|flush|discard) (\d+)\+(\d+) of '.*': "
    r"queued after \d+ µs, driver done \d+ µs, answered \d+ µs: done"
)


def test_each_request_has_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAPCORE_TRACE", "requests")
    with opened("ram:1M") as disk:
        wire = Wire(disk)
        wire.call(WRITE, 4096, payload=b"x" * 4096)
        wire.call(WRITE, 0, payload=b"y" * (256 << 10))  # begun before all of it is there
        wire.call(READ, 0, 65536)
        wire.call(TRIM, 0, 4096)
        wire.call(FLUSH)
        wire.end()
    found = [match.groups() for match in LINE.finditer(capsys.readouterr().err)]
    assert found == [
        ("write", "4096", "4096"),
        ("write", "0", str(256 << 10)),
        ("read", "0", "65536"),
        ("discard", "0", "4096"),
        ("flush", "0", "0"),
    ]


def test_nothing_is_there_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAPCORE_TRACE", raising=False)
    with opened("ram:1M") as disk:
        wire = Wire(disk)
        assert "submit" not in vars(wire.side.engine)
        wire.end()

"""`info` of an image with as many snapshots as it may have: memory and processor are bounded."""

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

_CLUSTER = 1 << 16
_MOST = 65_535


def with_snapshots(path: Path, name_length: int) -> Path:
    """All of them alike but for the id; their L1 table is the disk's own."""
    l1, table = 3 * _CLUSTER, 4 * _CLUSTER
    entries = bytearray()
    for number in range(_MOST):
        name, label = str(number).encode(), b"n" * name_length
        fields = l1, 1, len(name), len(label), number, 0, 0, 0, 16
        entry = struct.pack(">QIHHIIQII", *fields) + struct.pack(">QQ", 0, 1 << 20) + name + label
        entries += entry + bytes(-len(entry) % 8)
    tables = _CLUSTER, 1, _MOST, table
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, l1, *tables
    ) + struct.pack(">QQQII", 0, 0, 0, 4, 104)
    with path.open("wb") as file:
        file.write(head)
        file.seek(_CLUSTER)
        file.write(struct.pack(">Q", 2 * _CLUSTER))
        file.seek(table)
        file.write(entries)
    return path


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


def test_info_of_all_snapshots_that_there_can_be(tmp_path: Path) -> None:
    """Some 115 MiB and 3 seconds of a processor, for 28 MB of text."""
    image = with_snapshots(tmp_path / "disk.qcow2", 200)
    done = subprocess.run(
        [sys.executable, "-c", "from tapcore.cli.main import run; run()", "info", "--json", image],
        capture_output=True,
        preexec_fn=_limits,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"n" * 200) == _MOST
    json.loads(done.stdout)

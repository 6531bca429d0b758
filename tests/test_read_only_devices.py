"""Block devices that cannot be written: served for reading, and refused where something writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import EPERM, IS_READ_ONLY, NbdError
from served import served

import tapcore
from hostfs import loop_device
from tapcore.cli.main import main

MIB = 1 << 20
CONTENT = b"c" * MIB


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "backing"
    file.write_bytes(CONTENT)
    with loop_device(file, read_only=True) as path:
        yield path
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["aio", "aio-none", "sync"])
def test_it_is_served_read_only_with_a_word(kind: str, device: str, tmp_path: Path) -> None:
    handle, _, cache = kind.partition("-")
    words = ["--cache", cache] if cache else []
    where = tmp_path / "s"
    with (
        served(f"{handle}:{device}", "--socket", where, *words, quiet=False) as server,
        server.client() as client,
    ):
        assert client.flags & IS_READ_ONLY
        assert client.read(4096, 4096) == CONTENT[:4096]
        with pytest.raises(NbdError) as caught:
            client.write(0, b"x" * 512)
        assert caught.value.code == EPERM
        client.flush()
    assert server.messages == [
        f"tapdisk: {device}: is a read-only block device, and served as such"
    ]


def test_an_image_of_a_format_on_it_is_served_read_only_too(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    tapcore.create_image(f"qcow2:{image}", MIB)
    with loop_device(image, read_only=True) as device:
        where = tmp_path / "s"
        with (
            served(f"qcow2:{device}", "--socket", where, quiet=False) as server,
            server.client() as client,
        ):
            assert (client.size, client.flags & IS_READ_ONLY) == (MIB, IS_READ_ONLY)
        assert len(server.messages) == 1


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize(
    "words",
    [
        ["create", "aio:DEVICE", "1M"],
        ["create", "qcow2:DEVICE", "64K"],
        ["convert", "aio:backing", "aio:DEVICE"],
        ["convert", "aio:backing", "qcow2:DEVICE"],
        ["create", "qcow2:new.qcow2", "64K", "-o", "data_file=DEVICE"],
    ],
    ids=" ".join,
)
def test_nothing_is_made_on_it(
    words: list[str],
    force: list[str],
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused([*(word.replace("DEVICE", device) for word in words), *force], device, capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["backing"]


@pytest.mark.parametrize(
    "words",
    [["resize", "--shrink", "DEVICE", "512K"], ["bench", "DEVICE", "--rw", "write", "--force"]],
)
def test_nothing_on_it_is_changed(
    words: list[str], device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refused([word.replace("DEVICE", f"aio:{device}") for word in words], device, capfd)


def refused(words: list[str], device: str, capfd: pytest.CaptureFixture[str]) -> None:
    status = main(words)
    out, err = capfd.readouterr()
    assert (status, out) == (1, "")
    assert err in (
        f"tapdisk: {device}: is a read-only block device\n",
        f"tapdisk: aio:{device}: is a read-only block device\n",
    )

"""`info` tells a driver that only facts are wanted, and says the same of an image opened whole."""

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore.cli.main import main
from tapcore.interface.options import OpenOptions
from tapcore.opening import facts
from tapcore.tools.info import ImageInfo, image_info

SIZE = 1 << 20


def plain(handle: str, **options: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        tapcore.create_image(f"{handle}:{folder / 'disk'}", SIZE, options=options)
        with tapcore.open(f"{handle}:{folder / 'disk'}", readonly=False) as disk:
            disk.pwrite(4096, b"content" * 512)
        return f"{handle}:{folder / 'disk'}"

    return make


def child(handle: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        tapcore.create_image(f"{handle}:{folder / 'base'}", SIZE)
        tapcore.create_image(f"{handle}:{folder / 'disk'}", parent=f"{handle}:{folder / 'base'}")
        return f"{handle}:{folder / 'disk'}"

    return make


def with_snapshot_and_bitmap(folder: Path) -> str:
    name = plain("qcow2")(folder)
    assert main(["snapshot", "create", name, "monday"]) == 0
    assert main(["bitmap", "add", name, "changes"]) == 0
    return name


def compressed(folder: Path) -> str:
    (folder / "raw").write_bytes(b"content" * 4096)
    tapcore.convert_image(
        folder / "raw", f"vmdk:{folder / 'disk'}", options={"subformat": "streamOptimized"}
    )
    return f"vmdk:{folder / 'disk'}"


def changed_vmdk(change: Callable[[bytearray], object]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        name = plain("vmdk")(folder)
        content = bytearray((folder / "disk").read_bytes())
        change(content)
        (folder / "disk").write_bytes(content)
        return name

    return make


def directories(content: bytearray) -> list[int]:
    return [struct.unpack_from("<Q", content, at)[0] << 9 for at in (48, 56)]


def lose_tables(content: bytearray) -> None:
    for at in directories(content):
        content[at : at + 4] = bytes(4)


def name_no_descriptor(content: bytearray) -> None:
    content[28:44] = bytes(16)


IMAGES: dict[str, Callable[[Path], str]] = {
    **{handle: plain(handle) for handle in ("aio", "qcow", "qcow2", "vmdk", "vdi", "vhd", "vhdx")},
    "qcow2 with a data file": plain("qcow2", data_file="content"),
    "qcow2 with a snapshot and a bitmap": with_snapshot_and_bitmap,
    "qcow2, a child": child("qcow2"),
    "vmdk, a child": child("vmdk"),
    "vmdk, flat": plain("vmdk", subformat="monolithicFlat"),
    "vmdk, a stream": compressed,
    "vmdk without tables": changed_vmdk(lose_tables),
    "vmdk with a descriptor that is not named": changed_vmdk(name_no_descriptor),
    "vmdk with a directory outside": changed_vmdk(
        lambda content: content.__setitem__(slice(48, 64), b"\xff\xff\xff\xff\0\0\0\0" * 2)
    ),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES.keys())
def test_facts_alone_are_those_of_the_whole_image(
    make: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = make(tmp_path)

    def told() -> tuple[list[ImageInfo] | str, list[str]]:
        caplog.clear()
        found: list[ImageInfo] | str
        with caplog.at_level(logging.WARNING):
            try:
                found = image_info(name, chain=True)
            except tapcore.TapError as exc:
                found = str(exc)
        return found, [record.getMessage() for record in caplog.records]

    alone = told()

    def of_the_whole(**given: Any) -> OpenOptions:
        return OpenOptions(**{**given, "facts_only": False})

    monkeypatch.setattr(facts, "OpenOptions", of_the_whole)
    assert alone == told()

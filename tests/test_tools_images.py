"""info, inspect, map, create, resize as functions, beside qemu-img where it has the same."""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from tapcore.tools.check import check_as_dict, check_status
from tapcore.tools.create import create_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image
from tapcore.tools.map import map_disk
from tapcore.tools.openimage import open_image
from tapcore.tools.resize import resize_image

MIB = 1 << 20


def qemu_json(command: str, path: Path) -> Any:
    run = [peer("qemu-img"), command, "-U", "-f", "raw", "--output=json", str(path)]
    return json.loads(subprocess.run(run, check=True, capture_output=True).stdout)


def sparse(path: Path, rng: random.Random, size: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(8):
            offset = rng.randrange(size)
            file.seek(offset)
            file.write(rng.randbytes(min(rng.choice((1, 700, 9000, 70000)), size - offset)))
    os.sync()
    return path


SIZES = [512, 4096, 100001, MIB, 3 * MIB + 512, 3 * MIB + 4097]


# ---- info ------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["aio", "sync"])
@pytest.mark.parametrize("size", SIZES)
def test_info_is_what_qemu_img_says(
    tmp_path: Path, rng: random.Random, size: int, handle: str
) -> None:
    path = sparse(tmp_path / "a", rng, size)
    [info] = image_info(f"{handle}:{path}")
    theirs = qemu_json("info", path)
    assert info.as_dict() == {
        "image": str(path),
        "handle": handle,
        "virtual_size": theirs["virtual-size"],
        "sector_size": 512,
        "disk_size": theirs["actual-size"],
        "read_only": False,
        "parent": None,
        "parent_handle": None,
        "format": {"kind": "file", "file_size": size},
    }
    assert info.notes == ()


def test_info_of_a_disk_in_memory(tmp_path: Path) -> None:
    [info] = image_info("ram:64M")
    assert (info.image, info.virtual_size, info.disk_size) == ("ram:64M", 64 * MIB, 0)
    (tmp_path / "a").write_bytes(b"x" * 8192)
    [info] = image_info(f"ram:{tmp_path}/a")
    assert (info.virtual_size, info.disk_size) == (8192, 8192)


def test_info_takes_no_lock_and_tells_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(512))
    with tapcore.open(f"aio:{path}", readonly=False):
        [info] = image_info(str(path))
    assert len(info.notes) == 1
    assert "has it open for writing" in info.notes[0]
    with tapcore.open(f"aio:{path}", readonly=True):
        assert image_info(str(path))[0].notes == ()


# ---- map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["aio", "sync"])
@pytest.mark.parametrize("size", SIZES)
def test_map_is_what_qemu_img_says(
    tmp_path: Path, rng: random.Random, size: int, handle: str
) -> None:
    path = sparse(tmp_path / "a", rng, size)
    with open_image(f"{handle}:{path}") as disk:
        ours = [item.as_dict(str(path)) for item in map_disk(disk)]
    theirs = qemu_json("map", path)
    whole = size + -size % 512
    if size % 512 and theirs[-1]["zero"] and theirs[-1]["start"] == size:
        # QEMU tells the part of the last sector that is past the end; sectors are our unit
        theirs.pop()
        theirs[-1]["length"] = whole - theirs[-1]["start"]
    for item in theirs:
        item.pop("compressed", None)  # of newer versions
    assert ours == theirs


def test_map_of_memory_has_no_offsets(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB) + b"x" * MIB)
    with open_image(f"ram:{tmp_path}/a") as disk:
        items = [item.as_dict("") for item in map_disk(disk)]
    assert all("offset" not in item for item in items)
    assert sum(item["length"] for item in items) == 2 * MIB


# ---- inspect ---------------------------------------------------------------------------------


def test_inspect_a_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1024)
    found = inspect_image(str(path))
    assert found.as_dict() == {
        "image": str(path),
        "handle": "aio",
        "format": "aio",
        "file_size": 1024,
        "disk_size": found.disk_size,
        "virtual_size": 1024,
        "features": [],
        "references": [],
        "findings": [],
        "verdict": "harmless",
        "dangerous": False,
    }


@pytest.mark.parametrize(
    ("content", "note"), [(b"", "the file is empty"), (b"x" * 700, "188 of 512 bytes")]
)
def test_inspect_notes(tmp_path: Path, content: bytes, note: str) -> None:
    (tmp_path / "a").write_bytes(content)
    found = inspect_image(f"sync:{tmp_path}/a")
    assert [finding.severity for finding in found.findings] == ["note"]
    assert note in found.findings[0].message
    assert not found.dangerous


def test_inspect_opens_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 512)
    inspect_image(str(path))  # everything is imported
    opened: list[tuple[object, ...]] = []
    real = os.open

    def noting(*args: Any) -> int:
        opened.append(args)
        return real(*args)

    monkeypatch.setattr(os, "open", noting)
    inspect_image(str(path))
    [(name, flags)] = opened
    assert name == str(path)
    assert isinstance(flags, int)
    assert flags & os.O_ACCMODE == os.O_RDONLY


def test_inspect_refuses_what_is_no_file() -> None:
    with pytest.raises(tapcore.UsageError, match="not a file to be inspected"):
        inspect_image("ram:64M")


# ---- create ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new.img", "new.RAW", "aio:new", "sync:new"])
def test_create(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = create_image(name, 10 * MIB)
    path = tmp_path / name.partition(":")[2] if ":" in name else tmp_path / name
    assert path.stat().st_size == 10 * MIB
    assert made.drivertype == ("sync" if name.startswith("sync") else "aio")


@pytest.mark.parametrize(("how", "reserved"), [("off", False), ("falloc", True), ("full", True)])
def test_create_preallocated_as_qemu_img(tmp_path: Path, how: str, reserved: bool) -> None:
    create_image(f"aio:{tmp_path}/a", MIB, options={"preallocation": how})
    assert (image_info(f"aio:{tmp_path}/a")[0].disk_size >= MIB) == reserved


@pytest.mark.parametrize(
    ("name", "size", "arguments", "message"),
    [
        ("aio:{dir}/new", MIB, {"options": {"x": "1"}}, "no option 'x' (known: preallocation)"),
        (
            "aio:{dir}/new",
            MIB,
            {"options": {"preallocation": "some"}},
            "'some' is not a value of the option 'preallocation' (allowed: off, falloc, full)",
        ),
        ("aio:{dir}/new", None, {}, "needs a size"),
        ("aio:{dir}/new", MIB, {"parent": "old"}, "'aio' has no parents (-b)"),
        ("ram:64M", MIB, {}, "a 'ram' disk exists only while it is open"),
        ("{dir}/new.xyz", MIB, {}, "write HANDLE:PATH (handles: aio, "),
        ("{dir}/new", MIB, {}, "cannot tell the format"),
        ("nope:{dir}/new", MIB, {}, "no driver has the handle 'nope'"),
        ("aio:{dir}/old", MIB, {}, "exists already; --force replaces it"),
        ("aio:{dir}/dangling", MIB, {"force": True}, "is a symbolic link to nothing"),
        ("aio:{dir}", MIB, {"force": True}, "is a directory"),
        ("aio:{dir}/no/such/new", MIB, {}, "No such file or directory"),
        ("aio:{dir}/new", 1 << 62, {}, "File too large"),
    ],
)
def test_create_refuses(
    tmp_path: Path, name: str, size: int | None, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "dangling").symlink_to("nowhere")
    name = name.format(dir=tmp_path)
    with pytest.raises(tapcore.TapError) as caught:
        create_image(name, size, **arguments)
    assert message in caught.value.message
    assert caught.value.image in name
    assert caught.value.image
    assert sorted(os.listdir(tmp_path)) == ["dangling", "old"]
    assert (tmp_path / "old").read_bytes() == b"old"


# ---- resize ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shrink", "new"),
    [
        ("2M", False, 2 * MIB),
        ("+1M", False, 2 * MIB),
        ("+1", False, MIB + 512),
        ("-512K", True, MIB // 2),
    ],
)
@pytest.mark.parametrize("handle", ["aio:", "sync:", ""])
def test_resize(tmp_path: Path, handle: str, size: str, shrink: bool, new: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * MIB)
    assert resize_image(f"{handle}{path}", size, shrink=shrink) == (MIB, new)
    assert path.read_bytes() == (b"x" * MIB + bytes(MIB))[:new]


@pytest.mark.parametrize(
    ("size", "shrink", "message"),
    [
        ("512K", False, "would cut 512 KiB off its end; --shrink allows it"),
        ("-1K", False, "would cut 1 KiB off its end"),
        ("-2M", True, "has only 1048576 bytes"),
        ("1X", True, "is not a size"),
    ],
)
def test_resize_refuses(tmp_path: Path, size: str, shrink: bool, message: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * MIB)
    with pytest.raises(tapcore.UsageError, match=message):
        resize_image(str(path), size, shrink=shrink)
    assert path.stat().st_size == MIB


def test_resize_leaves_an_image_in_use_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * MIB)
    with (
        tapcore.open(f"aio:{path}", readonly=True),
        pytest.raises(tapcore.ImageLockedError, match="is in use"),
    ):
        resize_image(str(path), "2M")


# ---- check -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({}, 0),
        ({"leaks": 1}, 3),
        ({"corruptions": 1, "leaks": 1}, 2),
        ({"check_errors": 1, "leaks": 1}, 1),
        ({"leaks_fixed": 3, "corruptions_fixed": 2}, 0),
    ],
)
def test_check_status(counts: dict[str, Any], status: int) -> None:
    result = tapcore.CheckResult(**counts)
    assert check_status(result) == status
    assert check_as_dict(result)["leaks"] == counts.get("leaks", 0)

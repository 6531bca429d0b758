"""Clusters that lie wholly past the end of their file are lost, and nobody carries on zeroes."""

import contextlib
import hashlib
import logging
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import tapdisk
from cutimages import cut_anywhere, cut_beside_qemu, mixed_content, random_writes
from served import TAPDISK, served

import tapcore
from peers import peer
from qcow2tools import MIB, convert, create, qemu_img, qemu_io
from tapcore.engine.salvage import Salvage
from tapcore.tools.check import check_image
from tapcore.tools.commit import commit_image
from tapcore.tools.inspect import inspect_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image
from tapcore.tools.snapshots import apply_snapshot, create_snapshot

CLUSTER = 65536
PLACES = (0, 4, 8)
"""Clusters of the disk that are written, in this order: so they lie in the file."""


def written(image: Path, *, parent: str = "", size: int | None = MIB, **options: Any) -> Path:
    create(image, size, parent=parent, form="raw", **options)
    qemu_io(image, *(f"write -P {n + 1} {at * CLUSTER} 64k" for n, at in enumerate(PLACES)))
    return image


def cut(file: Path, clusters: float) -> Path:
    """Shorten a file by so many clusters."""
    os.truncate(file, int(file.stat().st_size - clusters * CLUSTER))
    return file


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The last two of three clusters are lost."""
    return cut(written(tmp_path / "a.qcow2"), 2)


def place(image: Path, at: int = 4) -> str:
    return f"{image}: read failed at {at * CLUSTER}: its cluster, at offset 0x"


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_python_reads_fail_with_the_place(damaged: Path, cache: tapcore.CacheMode) -> None:
    with tapcore.open(f"qcow2:{damaged}", readonly=True, cache=cache) as disk:
        assert disk.pread(0, length=CLUSTER) == b"\1" * CLUSTER
        for call in (
            lambda: disk.pread(4 * CLUSTER + 10, length=5),
            lambda: disk.pread(0, length=MIB),
            lambda: (disk.seek(4 * CLUSTER), disk.readinto(bytearray(512))),
        ):
            with pytest.raises(tapcore.LostContentError) as caught:
                call()
            assert str(caught.value).startswith(f"{damaged}: read failed at 2621")
            assert "past the end of the file" in str(caught.value)
        assert [run.start // CLUSTER for run in disk.extents() if run.missing] == [4, 8]
        assert all(run.fd is None for run in disk.extents() if run.missing)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("b.img", ()),
        ("b.qcow2", ()),
        ("b.qcow2", ("-c",)),
        ("b.vmdk", ()),
        ("qcow:b.qcow", ()),
        ("b.qcow2", ("-b", "aio:base.img")),
    ],
)
def test_nothing_is_converted_from_an_image_that_has_lost_clusters(
    damaged: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "base.img").write_bytes(b"\7" * MIB)
    handle, _, file = name.rpartition(":")
    target = f"{handle}:{tmp_path / file}" if handle else tmp_path / file
    _, said = tapdisk("convert", damaged, target, *words, status=1)
    assert said.startswith(f"tapdisk: {place(damaged)}")
    assert said.count("\n") == 1
    assert not (tmp_path / file).exists()


def test_nor_to_standard_output_nor_compared(damaged: Path) -> None:
    _, said = tapdisk("compare", damaged, damaged, status=2)
    assert said.startswith(f"tapdisk: {place(damaged)}")
    done = subprocess.run(
        [TAPDISK, "convert", damaged, "-"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, said.count("\n"), done.stderr) == (1, 1, said)


def test_the_place_in_a_parent_names_the_parent(tmp_path: Path) -> None:
    parent = written(tmp_path / "p.qcow2")
    child = create(tmp_path / "c.qcow2", None, parent=str(parent))
    cut(parent, 2)
    with (
        tapcore.open(f"qcow2:{child}", readonly=True) as disk,
        pytest.raises(tapcore.LostContentError) as caught,
    ):
        disk.pread(0, length=MIB)
    assert str(caught.value).startswith(place(parent))


def test_a_parent_that_is_shorter_than_its_child_is_no_damage(tmp_path: Path) -> None:
    written(tmp_path / "p.qcow2")
    child = create(tmp_path / "c.qcow2", 4 * MIB, parent=str(tmp_path / "p.qcow2"))
    with tapcore.open(f"qcow2:{child}", readonly=True) as disk:
        assert disk.pread(8 * CLUSTER, length=3 * MIB).count(3) == CLUSTER


@pytest.mark.parametrize("short", [1, 512, 4096, CLUSTER - 512])
def test_a_file_that_ends_inside_its_last_cluster_is_readable(tmp_path: Path, short: int) -> None:
    image = written(tmp_path / "a.qcow2")
    os.truncate(image, image.stat().st_size - short)
    want = (b"\3" * (CLUSTER - short)).ljust(CLUSTER, b"\0")
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(8 * CLUSTER, length=CLUSTER) == want
        assert not any(run.missing for run in disk.extents())
    tapcore.convert_image(f"qcow2:{image}", f"aio:{tmp_path}/b.img")
    assert (tmp_path / "b.img").read_bytes()[8 * CLUSTER : 9 * CLUSTER] == want
    assert check_image(f"qcow2:{image}").corruptions == 0


@pytest.mark.parametrize(
    "options", [{"extended_l2": "on"}, {"compat": "0.10"}, {"encrypt_format": "luks"}]
)
def test_other_kinds_of_images(tmp_path: Path, options: dict[str, Any]) -> None:
    image = tmp_path / "a.qcow2"
    keys = None
    if "encrypt_format" in options:
        keys = b"correct horse"
        tapcore.create_image(f"aio:{tmp_path}/plain.img", MIB)
        (tmp_path / "plain.img").write_bytes(b"\1" * MIB)
        qemu_img(
            "convert",
            "--object",
            "secret,id=key,data=correct horse",
            "-O",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
            tmp_path / "plain.img",
            image,
        )
    else:
        written(image, **options)
    cut(image, 2)
    with tapcore.open(f"qcow2:{image}", readonly=True, keys=keys) as disk:
        lost = [run for run in disk.extents() if run.missing]
        assert sum(run.length for run in lost) == 2 * CLUSTER
        for run in lost:
            with pytest.raises(tapcore.LostContentError, match="past the end of the file"):
                disk.pread(run.start, length=512)
    with tapcore.open(f"qcow2:{image}", readonly=True, keys=keys, salvage=True) as disk:
        for run in lost:
            assert disk.pread(run.start, length=run.length) == bytes(run.length)
        assert disk.salvage is not None
        assert disk.salvage.lost == 2 * CLUSTER


@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
def test_preallocated_images_have_lost_nothing(tmp_path: Path, how: str) -> None:
    image = create(tmp_path / "a.qcow2", MIB, preallocation=how)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        assert disk.pread(0, length=MIB) == bytes(MIB)
        disk.pwrite(5 * CLUSTER + 5, b"x")
        assert not any(run.missing for run in disk.extents())


def test_a_compressed_cluster_is_not_made_up_from_what_follows_the_end(tmp_path: Path) -> None:
    raw = tmp_path / "a.img"
    rng = random.Random(1)
    pieces = (bytes([n]) * 4096 + rng.randbytes(512) for n in range(200))
    raw.write_bytes(b"".join(pieces)[: 8 * CLUSTER])
    image = tmp_path / "a.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
    content = image.read_bytes()
    want = raw.read_bytes()
    for length in range(len(content) - 3000, len(content) - 600, 127):
        image.write_bytes(content[:length])
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            for at in range(0, len(want), CLUSTER):
                with contextlib.suppress(tapcore.LostContentError):
                    assert disk.pread(at, length=CLUSTER) == want[at : at + CLUSTER]


def test_an_l2_table_that_is_cut_does_not_say_that_nothing_is_there(tmp_path: Path) -> None:
    image = create(tmp_path / "a.qcow2", 64 * MIB, cluster_size=4096)
    qemu_io(image, "write -P 1 0 4k", "write -P 2 2000k 4k")
    (l1,) = (int.from_bytes(image.read_bytes()[40:48], "big"),)
    l2 = int.from_bytes(image.read_bytes()[l1 : l1 + 8], "big") & 0xFFFFFFFFFE00
    os.truncate(image, l2 + 2048)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        with pytest.raises(tapcore.LostContentError, match=r"its L2 table, at offset 0x.* is cut"):
            disk.pread(2000 << 10, length=512)
        with pytest.raises(tapcore.TapError, match=rf"^{image}: its L2 table"):
            list(disk.extents())
    _, said = tapdisk("convert", "--salvage", image, tmp_path / "b.img", status=3)
    assert said.startswith(f"tapdisk: lost {2 * MIB} bytes at 0: {image}: its L2 table")


# ---- external data files ---------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["off", "on"])
def test_a_data_file_that_is_too_short(tmp_path: Path, raw: str) -> None:
    image = written(tmp_path / "a.qcow2", data_file="d.raw", data_file_raw=raw)
    os.truncate(tmp_path / "d.raw", 5 * CLUSTER - 700)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(4 * CLUSTER, length=CLUSTER) == (b"\2" * (CLUSTER - 700)).ljust(
            CLUSTER, b"\0"
        )
        with pytest.raises(tapcore.LostContentError) as caught:
            disk.pread(0, length=MIB)
    assert str(caught.value).startswith(f"{image}: read failed at ")
    assert str(caught.value).endswith(f"past the end of the data file {tmp_path}/d.raw")
    found = check_image(f"qcow2:{image}")
    assert found.corruptions == (11 if raw == "on" else 1)
    assert any("is lost, past the end of the data file" in line for line in found.messages)
    before = image.read_bytes()
    with pytest.raises(tapcore.TapError, match=r"past the end of its data file .*not written"):
        resize_image(f"qcow2:{image}", "+1M")
    assert image.read_bytes() == before


def test_what_could_not_be_checked_without_its_data_file_is_not_called_whole(
    tmp_path: Path,
) -> None:
    image = written(tmp_path / "a.qcow2", data_file="d.raw")
    (tmp_path / "d.raw").rename(tmp_path / "other")
    for words in ((), ("--repair", "all"), ("--json",)):
        out, said = tapdisk("check", image, *words, status=1)
        assert "No errors" not in out
        why = "the data file was not looked at: its data file 'd.raw' does not exist"
        assert said.startswith(f"tapdisk: {image}: could not be checked: {why}")
        assert said.count("\n") == 1


# ---- changing --------------------------------------------------------------------------------


def test_commit_leaves_the_parent_as_it_was(tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(b"\7" * MIB)
    child = cut(written(tmp_path / "a.qcow2", parent=str(base)), 1)
    before = digest(base), digest(child)
    with pytest.raises(
        tapcore.LostContentError, match=rf"^{child}: has lost 64 KiB .* at {8 * CLUSTER} of"
    ):
        commit_image(f"qcow2:{child}")
    assert (digest(base), digest(child)) == before
    with pytest.raises(tapcore.TapError, match=rf"^{child}: .*past the end of its file"):
        rebase_image(f"qcow2:{child}", "")
    assert (digest(base), digest(child)) == before


def test_nothing_is_committed_into_an_image_that_has_lost_clusters(tmp_path: Path) -> None:
    parent = cut(written(tmp_path / "p.qcow2"), 1)
    child = create(tmp_path / "c.qcow2", None, parent=str(parent))
    with tapcore.open(f"qcow2:{child}", readonly=False) as disk:
        disk.pwrite(0, b"x" * CLUSTER)
        with pytest.raises(tapcore.TapError, match=r"(read|write) failed"):
            disk.pwrite(8 * CLUSTER + 5, b"x")  # would copy the rest of the cluster
    before = digest(parent)
    with pytest.raises(tapcore.TapError, match=r"p\.qcow2: .*past the end of its file"):
        commit_image(f"qcow2:{child}")
    assert digest(parent) == before


CHANGES: dict[str, Callable[[str], object]] = {
    "resize": lambda name: resize_image(name, "+1M"),
    "snapshot": lambda name: create_snapshot(name, "later"),
    "write": lambda name: _write(name),
}


def _write(name: str) -> None:
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(12 * CLUSTER, b"x" * CLUSTER)


@pytest.mark.parametrize("change", CHANGES)
def test_no_tool_lets_the_file_grow_over_what_is_lost(damaged: Path, change: str) -> None:
    """Holes would take the place of what is missing, and read as zeroes without a word."""
    before = digest(damaged)
    with pytest.raises(tapcore.TapError) as caught:
        CHANGES[change](f"qcow2:{damaged}")
    assert str(damaged) in str(caught.value)
    assert f"2 clusters that lie past the end of its file (the first at {4 * CLUSTER}" in str(
        caught.value
    )
    assert digest(damaged) == before


def test_a_snapshot_that_is_lost_is_not_applied(tmp_path: Path) -> None:
    image = written(tmp_path / "a.qcow2")
    create_snapshot(f"qcow2:{image}", "then")
    qemu_io(image, *(f"write -P 9 {at * CLUSTER} 64k" for at in PLACES))
    # the snapshot's clusters lie before those of the disk: swap what the tables say
    content = bytearray(image.read_bytes())
    end = len(content)
    os.truncate(image, end - 3 * CLUSTER)
    with pytest.raises(tapcore.TapError, match="past the end of its file"):
        apply_snapshot(f"qcow2:{image}", "then")
    with tapcore.open(f"qcow2:{image}", readonly=True, snapshot="then") as disk:
        assert disk.pread(0, length=CLUSTER) == b"\1" * CLUSTER


def test_after_a_repair_the_rest_goes_on(damaged: Path) -> None:
    found = check_image(f"qcow2:{damaged}", repair="all")
    assert any("the content of 2 clusters is lost" in line for line in found.messages)
    assert found.corruptions == 0
    _write(f"qcow2:{damaged}")
    with tapcore.open(f"qcow2:{damaged}", readonly=True) as disk:
        assert disk.pread(0, length=CLUSTER) == b"\1" * CLUSTER
        assert disk.pread(4 * CLUSTER, length=CLUSTER) == bytes(CLUSTER)


# ---- what is told, and salvaged ----------------------------------------------------------------


def test_map_and_inspect_say_it(damaged: Path) -> None:
    out, _ = tapdisk("map", damaged, status=0)
    assert out.count("missing") == 2
    out, _ = tapdisk("map", "--json", damaged, status=0)
    assert out.count('"missing": true') == 2
    said = inspect_image(f"qcow2:{damaged}")
    assert any("2 clusters lie past the end of the file" in f.message for f in said.findings)


def test_salvage_copies_the_rest_and_lists_what_is_lost(damaged: Path, tmp_path: Path) -> None:
    for target in ("b.img", "b.qcow2", "b.vmdk"):
        _, said = tapdisk("convert", "--salvage", damaged, tmp_path / target, status=3)
        lines = said.splitlines()
        assert [line.split(":")[1].strip() for line in lines] == [
            f"lost {CLUSTER} bytes at {4 * CLUSTER}",
            f"lost {CLUSTER} bytes at {8 * CLUSTER}",
            "128 KiB in 2 ranges could not be read, and are zeroes",
        ]
        with tapcore.open(str(tmp_path / target), readonly=True) as disk:
            assert disk.pread(0, length=MIB) == (b"\1" * CLUSTER).ljust(MIB, b"\0")
    assert tapdisk("compare", damaged, tmp_path / "b.img", status=2)
    assert tapdisk("compare", "--salvage", damaged, tmp_path / "b.img", status=3)
    whole = written(tmp_path / "whole.qcow2")
    assert tapdisk("convert", "--salvage", whole, tmp_path / "w.img", status=0)[1] == ""
    assert tapdisk("compare", "--salvage", whole, tmp_path / "w.img", status=0)[1] == ""


@pytest.mark.parametrize("extended", ["on", "off"])
def test_an_impossible_entry_costs_its_own_cluster_alone(tmp_path: Path, extended: str) -> None:
    """Data on one side of it, a hole on the other, all in one read."""
    image = create(tmp_path / "a.qcow2", 4 * MIB, cluster_size=16384, extended_l2=extended)
    qemu_io(image, "write -P 1 0 160k", "write -P 2 320k 160k")
    content = bytearray(image.read_bytes())
    l1 = int.from_bytes(content[40:48], "big")
    l2 = int.from_bytes(content[l1 : l1 + 8], "big") & 0xFFFFFFFFFE00
    words = 2 if extended == "on" else 1
    for cluster in (5, 15):  # in the data, and in the hole behind it
        at = l2 + 8 * words * cluster
        content[at : at + 8] = 0x8000_0000_0000_0200.to_bytes(8, "big")
    image.write_bytes(content)
    want = bytearray(b"\1" * (160 << 10)).ljust(320 << 10, b"\0") + b"\2" * (160 << 10)
    want[5 * 16384 : 6 * 16384] = bytes(16384)
    with tapcore.open(f"qcow2:{image}", readonly=True, salvage=True) as disk:
        assert disk.pread(0, length=len(want)) == want
        assert disk.salvage is not None
        lost = [(run.start // 16384, run.length // 16384) for run in disk.salvage.ranges]
        assert lost == [(5, 1), (15, 1)]
    with (
        tapcore.open(f"qcow2:{image}", readonly=True) as disk,
        pytest.raises(tapcore.TapError, match=rf"^{image}: .* entry .* at {5 * 16384} of the disk"),
    ):
        list(disk.extents())


@pytest.mark.parametrize(("field", "what"), [(48, "refcount table"), (64, "snapshot table")])
def test_what_no_read_needs_stops_no_salvage(tmp_path: Path, field: int, what: str) -> None:
    image = written(tmp_path / "a.qcow2")
    create_snapshot(f"qcow2:{image}", "then")
    with open(image, "r+b") as file:
        file.seek(field)
        file.write((1 << 40).to_bytes(8, "big"))
    with pytest.raises(tapcore.TapError, match=f"its {what} outside .*convert --salvage copies"):
        tapcore.convert_image(f"qcow2:{image}", f"aio:{tmp_path}/b.img")
    tapdisk("convert", "-q", "--salvage", image, tmp_path / "b.img", status=0)
    content = (tmp_path / "b.img").read_bytes()
    assert [content.count(n + 1) for n in range(3)] == [CLUSTER] * 3
    if what == "snapshot table":
        with pytest.raises(tapcore.TapError, match="its snapshot table outside"):
            tapcore.convert_image(
                f"qcow2:{image}", f"aio:{tmp_path}/c.img", snapshot="then", salvage=Salvage()
            )


def test_bench_says_where(damaged: Path) -> None:
    _, said = tapdisk("bench", "-q", damaged, "--rw", "read", "--bs", "64K", status=1)
    assert said.startswith(f"tapdisk: {place(damaged)}")
    assert said.endswith("(convert --salvage copies what is left)\n")


# ---- a server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_server_goes_on_with_zeroes_and_one_line(damaged: Path, cache: str) -> None:
    socket = damaged.with_name("s")
    arguments = (f"qcow2:{damaged}", "--cache", cache, "--socket", socket)
    with served(*arguments, quiet=False) as server, server.client() as client:
        for _ in range(3):
            assert client.read(4 * CLUSTER, CLUSTER) == bytes(CLUSTER)
            assert client.read(0, MIB)[:CLUSTER] == b"\1" * CLUSTER
        client.write(4 * CLUSTER + 4096, b"\5" * 4096)  # into a lost cluster
        client.write(12 * CLUSTER + 512, b"\6" * 512)  # the file grows
        want = (bytes(4096) + b"\5" * 4096).ljust(CLUSTER, b"\0")
        assert client.read(4 * CLUSTER, CLUSTER) == want
        assert client.read(8 * CLUSTER, CLUSTER) == bytes(CLUSTER)
    lines = [line for line in server.messages if "past the end" in line]
    assert len(lines) == 1
    assert str(damaged) in lines[0]
    assert check_image(f"qcow2:{damaged}").corruptions == 0


def test_the_log_line_comes_once_for_each_image(
    damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tapcore.disk import Disk
    from tapcore.tools.openimage import open_chain

    with caplog.at_level(logging.WARNING):
        state = open_chain(f"qcow2:{damaged}", writing=True, missing="zeroes")
        with Disk(state) as disk:
            for _ in range(4):
                assert disk.pread(4 * CLUSTER, length=5 * CLUSTER) == bytes(5 * CLUSTER)
            disk.pwrite(4 * CLUSTER, b"x")
    assert len(caplog.records) == 1


def test_a_server_starts_after_a_power_loss_with_lazy_refcounts(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    create(image, MIB, lazy_refcounts="on")
    commands = [f"write -P {n + 1} {at * CLUSTER} 64k" for n, at in enumerate(PLACES)]
    words = [word for command in (*commands, "abort") for word in ("-c", command)]
    subprocess.run(
        [peer("qemu-io"), "-f", "qcow2", *words, image],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert image.read_bytes()[79] & 1  # still marked as dirty
    cut(image, 1)
    socket = image.with_name("s")
    with (
        served(f"qcow2:{image}", "--socket", socket, quiet=False) as server,
        server.client() as client,
    ):
        assert client.read(0, CLUSTER) == b"\1" * CLUSTER
        assert client.read(8 * CLUSTER, CLUSTER) == bytes(CLUSTER)
        client.write(10 * CLUSTER, b"\4" * CLUSTER)
    assert len([line for line in server.messages if "past the end" in line]) == 1
    assert check_image(f"qcow2:{image}").corruptions == 0
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(10 * CLUSTER, length=CLUSTER) == b"\4" * CLUSTER
        assert disk.pread(4 * CLUSTER, length=CLUSTER) == b"\2" * CLUSTER


def test_a_refcount_block_that_is_cut_does_not_say_that_clusters_are_free(tmp_path: Path) -> None:
    """The second block lies behind the first clusters that it counts."""
    image = create(tmp_path / "a.qcow2", 8 * MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, random.Random(1).randbytes(4 * MIB))
    content = image.read_bytes()
    table = int.from_bytes(content[48:56], "big")
    blocks = [int.from_bytes(content[at : at + 8], "big") for at in range(table, table + 512, 8)]
    last = max(blocks)
    os.truncate(image, last + 100)
    before = digest(image)
    with (
        tapcore.open(f"qcow2:{image}", readonly=False) as disk,
        pytest.raises(tapcore.TapError, match=rf"^{image}: write failed at"),
    ):
        disk.pwrite(6 * MIB, b"x" * 512)
    assert digest(image) == before


CUT: dict[str, tuple[bool, dict[str, Any]]] = {
    "512": (False, {"cluster_size": 512}),
    "4k-compressed": (True, {"cluster_size": 4096}),
    "zstd": (True, {"cluster_size": 8192, "compression_type": "zstd"}),
    "extended": (False, {"cluster_size": 16384, "extended_l2": "on"}),
    "v2": (False, {"cluster_size": 4096, "compat": "0.10"}),
}


@pytest.mark.parametrize("kind", CUT)
def test_cut_anywhere_it_fails_or_is_right(tmp_path: Path, rng: random.Random, kind: str) -> None:
    compress, options = CUT[kind]
    want = mixed_content(rng, (64 if kind == "512" else 512) << 10, 4096)
    (tmp_path / "a.img").write_bytes(want)
    image = convert(tmp_path / "a.img", tmp_path / "a.qcow2", compress=compress, **options)
    cut_anywhere("qcow2", image, want, rng)


@pytest.mark.parametrize("options", [{}, {"cluster_size": 4096}, {"extended_l2": "on"}])
def test_cut_anywhere_it_is_what_qemu_says(
    tmp_path: Path, rng: random.Random, options: dict[str, Any]
) -> None:
    image = create(tmp_path / "a.qcow2", 4 * MIB, **options)
    qemu_io(image, *random_writes(rng, 4 * MIB))
    cut_beside_qemu("qcow2", image, rng)

"""Partitions: as sfdisk makes them, as nbdkit and QEMU read them, and as strangers make them."""

import json
import os
import random
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from commandline import tapdisk

import tapcore
from diskmodel import Model
from parttables import Gpt, mbr
from peers import peer
from tapcore import TapError
from tapcore.engine import WRITE, Request, engine_of
from tapcore.engine.drive import EngineLoop

MIB = 1 << 20
SIZE = 64 * MIB
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def disk(folder: Path, *writes: tuple[int, bytes], size: int = SIZE) -> Path:
    """A disk with content at places (bytes)."""
    path = folder / "disk.img"
    with open(path, "wb") as file:
        file.truncate(size)
        for at, content in writes:
            file.seek(at)
            file.write(content)
    return path


def found(path: Path, number: int | str) -> tuple[int, int]:
    """Where a partition is said to lie: start and length in bytes."""
    with tapcore.open(f"part:{number}:aio:{path}", readonly=True) as opened:
        start = opened.info()["start"]
        assert isinstance(start, int)
        return start, opened.size


def refused(path: Path, number: int | str) -> str:
    with pytest.raises(TapError) as caught:
        found(path, number)
    return str(caught.value)


# ---- by sfdisk -------------------------------------------------------------------------------


def sfdisk(path: Path, script: str) -> list[dict[str, Any]]:
    """Make a table; the partitions as sfdisk itself reads them."""
    command = peer("sfdisk")
    subprocess.run([command, "-q", path], input=script, text=True, check=True, capture_output=True)
    said = subprocess.run([command, "--json", path], capture_output=True, text=True, check=True)
    rows = json.loads(said.stdout)["partitiontable"]["partitions"]
    return [{**row, "number": int(row["node"].removeprefix(str(path)))} for row in rows]


def layout(rng: random.Random, label: str) -> str:
    lines = [f"label: {label}"]
    extended = rng.randrange(4) if label == "dos" else -1
    for n in range(4 if label == "dos" else rng.randrange(1, 9)):
        if n == extended:
            lines.append(f"start={4096 + n * 24576}, size=20480, type=5")
        else:
            lines.append(f"start={4096 + n * 12288 * 2}, size={rng.randrange(1, 20480)}")
        if n == 3 and label != "dos":
            break
    logical = 4096 + extended * 24576
    for k in range(rng.randrange(5) if extended >= 0 else 0):
        lines.append(f"start={logical + 2048 + k * 4096}, size={rng.randrange(1, 2048)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("label", ["dos", "gpt"])
@pytest.mark.parametrize("seed", range(4 * THOROUGH))
def test_every_partition_lies_where_sfdisk_says(label: str, seed: int, tmp_path: Path) -> None:
    path = disk(tmp_path)
    rows = sfdisk(path, layout(random.Random(seed), label))
    assert rows
    for row in rows:
        if row["type"] in ("5", "f"):
            assert "has no partition" in refused(path, row["number"])
            continue
        assert found(path, row["number"]) == (row["start"] * 512, row["size"] * 512), row
    assert "there are:" in refused(path, 99)


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_nbdkit_and_qemu_read_the_same(label: str, tmp_path: Path) -> None:
    path = disk(tmp_path)
    rows = sfdisk(path, layout(random.Random(7), label))
    content = random.Random(1).randbytes(SIZE // 2)
    with open(path, "r+b") as file:
        for row in rows:
            if row["type"] not in ("5", "f"):
                file.seek(row["start"] * 512)
                file.write(content[: row["size"] * 512])
    nbdkit, img = peer("nbdkit"), peer("qemu-img")
    for row in rows:
        if row["type"] in ("5", "f"):
            continue
        copy = tmp_path / "copy"
        command = f"{img} convert -f raw -O raw $uri {copy}"
        words = ["-r", "--filter=partition", "file", str(path), f"partition={row['number']}"]
        subprocess.run([nbdkit, *words, "--run", command], check=True)
        with tapcore.open(f"part:{row['number']}:{path}", readonly=True) as opened:
            mine = opened.pread(0, length=opened.size)
        assert mine == copy.read_bytes()
        raw = f"driver=raw,offset={row['start'] * 512},size={row['size'] * 512}"
        options = f"{raw},file.driver=file,file.filename={path}"
        subprocess.run([img, "convert", "--image-opts", options, copy], check=True)
        assert mine == copy.read_bytes()


# ---- reads and writes ------------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["aio", "qcow2", "vmdk"])
def test_what_is_done_to_a_partition_stays_in_it(handle: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    table = mbr((0x83, 3, 1000), (0x83, 1003, 9000), (0x83, 10003, 100))
    before = bytearray(rng.randbytes(8 * MIB))
    before[:512] = table
    name = f"{handle}:{tmp_path / 'disk'}"
    tapcore.create_image(name, 8 * MIB)
    with tapcore.open(name, readonly=False) as whole:
        whole.pwrite(0, before)
    start, length = 1003 * 512, 9000 * 512
    with tapcore.open(f"part:2:{name}", readonly=False) as opened:
        model = Model(opened, bytes(before[start : start + length]))
        for n in range(80):
            kind = rng.choice(["write", "write", "read", "zero", "discard", "sync"])
            if kind == "discard":
                continue
            place, count = rng.randrange(length), rng.choice([1, 512, 4096, 70_000, 1_200_000])
            model.apply((kind, place, count, n))
        with pytest.raises(TapError):
            opened.pwrite(length - 10, bytes(20))
        opened.discard(0, length=length)
        after = opened.pread(0, length=length)
    with tapcore.open(name, readonly=True) as whole:
        content = whole.pread(0, length=8 * MIB)
    assert content[:start] == before[:start]
    assert content[start : start + length] == after
    assert content[start + length :] == before[start + length :]


def test_many_at_once_and_over_nbd(tmp_path: Path) -> None:
    path = disk(tmp_path, (0, mbr((0x83, 2048, 65536))))
    content = random.Random(2).randbytes(4 * MIB)
    with tapcore.open(f"part:1:{path}", readonly=False) as opened:
        statuses: list[int] = []
        engine = engine_of(opened.state)
        view = memoryview(content)
        for at in range(0, len(content), 4096):
            part = view[at : at + 4096]
            engine.submit(Request(WRITE, at, 4096, part, lambda req: statuses.append(req.status)))
        EngineLoop(engine).run_until(lambda: len(statuses) == 1024)
        assert not any(statuses)
    assert path.read_bytes()[MIB : 5 * MIB] == content
    run = f"{peer('qemu-io')} -f raw -c 'read 0 4k' -c 'write -P 7 4k 4k' -c flush $uri"
    command = ["serve", f"part:1:{path}", "--run", run]
    subprocess.run([str(Path(os.sys.executable).parent / "tapdisk"), *command], check=True)  # type: ignore[attr-defined]
    assert path.read_bytes()[MIB + 4096 : MIB + 8192] == b"\x07" * 4096


def test_partitions_of_partitions_and_extents(tmp_path: Path) -> None:
    inner = mbr((0x83, 8, 64))
    path = disk(tmp_path, (0, mbr((0x83, 2048, 4096))), (MIB, inner), (MIB + 4096, b"x" * 4096))
    with tapcore.open(f"part:1:part:1:{path}", readonly=True) as opened:
        assert opened.size == 64 * 512
        assert opened.pread(0, length=4096) == b"x" * 4096
        runs = list(opened.extents())
    assert runs[0].offset == MIB + 4096
    assert runs[0].filename.endswith("disk.img")
    tapcore.convert_image(f"part:1:part:1:{path}", tmp_path / "copy.img")
    assert (tmp_path / "copy.img").read_bytes() == b"x" * 4096 + bytes(64 * 512 - 4096)
    with pytest.raises(TapError, match="more than 8 images below each other"):
        found(path, "1:" + "part:1:" * 12 + "part:1")


def test_tables_of_sectors_of_4096_bytes(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    Gpt(SIZE, 4096, (100, 199, "eins"), (200, 200, "zwei")).write(path)
    assert found(path, 1) == (100 * 4096, 100 * 4096)
    assert found(path, 2) == (200 * 4096, 4096)
    path = disk(tmp_path, (0, mbr((0x83, 100, 50))))
    assert found(path, 1) == (100 * 512, 50 * 512)
    assert found(path, "1/4096") == (100 * 4096, 50 * 4096)


# ---- parents ---------------------------------------------------------------------------------


def test_as_a_parent_it_is_judged_as_a_file_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    other.mkdir()
    disk(folder, (0, mbr((0x83, 2048, 4096))), (MIB, b"a" * 512))
    disk(other, (0, mbr((0x83, 2048, 4096))), (MIB, b"b" * 512))
    child = folder / "child.qcow2"
    tapcore.create_image(child, None, parent="part:1:disk.img")
    with tapcore.open(f"qcow2:{child}", readonly=False) as opened:
        assert opened.pread(0, length=512) == b"a" * 512
        opened.pwrite(512, b"c" * 512)
    far = folder / "far.qcow2"
    wanted = f"part:1:{other / 'disk.img'}"
    tapcore.create_image(far, None, parent=wanted)
    assert "will not be opened as it is" in caplog.text
    assert caplog.text.count("will not be") == 1  # of this one alone
    with pytest.raises(TapError, match=r"outside its directory; --parents .*out would allow it"):
        tapcore.open(f"qcow2:{far}", readonly=False)
    with tapcore.open(f"qcow2:{far}", parents=str(other), readonly=False) as opened:
        assert opened.pread(0, length=512) == b"b" * 512
    with pytest.raises(TapError, match="--parents none forbids all"):
        tapcore.open(f"qcow2:{child}", parents="none", readonly=False)
    with pytest.raises(TapError, match="only a file can be committed into"):
        tapdisk_python_commit(child)


def tapdisk_python_commit(child: Path) -> None:
    from tapcore.tools.commit import commit_image

    commit_image(child)


@pytest.mark.parametrize(
    "named", ["part:1:nbd://host/x", "part:1:json:{}", "ram:1M", "part:1:ram:1M", "part:1:"]
)
def test_what_no_file_is_stays_refused(named: str, tmp_path: Path) -> None:
    from tapcore.tools.rebase import rebase_image

    child = tmp_path / "child.qcow2"
    tapcore.create_image(child, MIB)
    handle, _, rest = named.partition(":")
    with tapcore.open(f"qcow2:{child}", readonly=False) as opened, opened.driver() as dd:
        dd.drv.td_set_parent(dd, tapcore.DiskId(rest, handle))
    with pytest.raises(TapError):
        tapcore.open(f"qcow2:{child}", readonly=False)
    with pytest.raises(TapError):
        tapcore.open(f"qcow2:{child}", parents="any", readonly=False)
    if named == "ram:1M":  # the policy names it
        with tapcore.open(f"qcow2:{child}", parents="ram:", readonly=False) as opened:
            assert opened.pread(0, length=512) == bytes(512)
    rebase_image(child, "", unsafe=True)


def test_an_image_that_lies_on_itself_ends(tmp_path: Path) -> None:
    child = tmp_path / "child.qcow2"
    tapcore.create_image(child, MIB)
    with tapcore.open(f"qcow2:{child}", readonly=False) as opened, opened.driver() as dd:
        dd.drv.td_set_parent(dd, tapcore.DiskId("1:qcow2:child.qcow2", "part"))
    with pytest.raises(TapError, match="more than 8 images below each other"):
        tapcore.open(f"qcow2:{child}", readonly=True, lock=False)


# ---- tables of strangers ---------------------------------------------------------------------


def test_a_table_that_is_none(tmp_path: Path) -> None:
    assert "has no partition table" in refused(disk(tmp_path), 1)
    assert "has no partition table" in refused(disk(tmp_path, (510, b"\x55\xaa")), 1)
    boot = mbr((0x83, 1, 1), flag=7)  # the first sector of a file system
    assert "has no partition table" in refused(disk(tmp_path, (0, boot)), 1)
    assert "has no partition table" in refused(disk(tmp_path, size=512), 1)
    assert "is not part:N:IMAGE" in refused(disk(tmp_path), "x")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (((0x83, 1, 100), (0x83, 50, 100)), "its partitions 1 and 2 overlap"),
        (((0x83, 1, 200_000),), "past the end of the disk"),
        (((0x83, 0xFFFFFFFF, 0xFFFFFFFF),), "past the end of the disk"),
        (((0x83, 1, 9), (0x05, 10, 9), (0x0F, 30, 9)), "two extended partitions"),
        (((0x83, 1, 10), (0x05, 5, 9)), "overlaps the extended one"),
        (((0x83, 1, 9), (0xEE, 1, 9)), "speaks of a GPT, which is not there"),
    ],
)
def test_an_mbr_that_is_not_to_be_trusted(
    rows: tuple[tuple[int, int, int], ...], said: str, tmp_path: Path
) -> None:
    assert said in refused(disk(tmp_path, (0, mbr(*rows))), 1)


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ({100: ((0x83, 1, 5), (5, 0, 1))}, "does not end"),
        ({100: ((0x83, 1, 5), (5, 10, 9)), 110: ((0x83, 1, 2), (5, 0, 9))}, "does not end"),
        ({100: ((0x83, 1, 5), (5, 5000, 9))}, "leaves the extended one"),
        ({100: ((0x83, 1, 5), (5, 20, 9))}, "breaks off at sector 120"),
        ({100: ((0x83, 1, 5000), None)}, "does not lie inside the extended one"),
        ({100: ((0x83, 0, 5), None)}, "does not lie inside the extended one"),
        ({100: ((0x83, 1, 50), (5, 20, 9)), 120: ((0x83, 1, 50), None)}, "overlap"),
    ],
    ids=str,
)
def test_a_chain_that_is_not_to_be_trusted(
    links: dict[int, tuple[tuple[int, int, int] | None, ...]], said: str, tmp_path: Path
) -> None:
    writes = [(0, mbr((5, 100, 1000)))]
    writes += [(at * 512, mbr(*rows)) for at, rows in links.items()]
    assert said in refused(disk(tmp_path, *writes), 5)


def test_a_gpt_whose_first_header_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for unit in (512, 4096):
        table = Gpt(SIZE, unit, (100, 199, "eins"))
        path = tmp_path / "disk.img"
        table.write(path, first=False)
        caplog.clear()
        assert found(path, 1) == (100 * unit, 100 * unit)
        assert "its first GPT header" in caplog.text
        table.write(path, second=False)
        caplog.clear()
        assert found(path, 1) == (100 * unit, 100 * unit)
        assert "its second GPT header" in caplog.text
        table.write(path, first=False, second=False)
        assert "speaks of a GPT, which is not there" in refused(path, 1)


def test_every_bit_of_the_headers_and_tables_is_covered(tmp_path: Path) -> None:
    """Whatever single bit is turned over, the other header's word holds."""
    path, rng = tmp_path / "disk.img", random.Random(6)
    Gpt(MIB, 512, (100, 199, "eins"), (300, 399, "zwei")).write(path)
    with open(path, "r+b", buffering=0) as file:
        for _ in range(60 * THOROUGH):
            at = rng.choice([512 + rng.randrange(92), 1024 + rng.randrange(300)])
            (byte,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte ^ 1 << rng.randrange(8)]), at)
            assert found(path, 2) == (300 * 512, 100 * 512)
            os.pwrite(file.fileno(), bytes([byte]), at)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"place": 5}, "is said to lie at sector 5"),
        ({"size": 64}, "rows of 64 bytes"),
        ({"count": 1 << 31}, "rows of 128 bytes"),
        ({"count": 1 << 16}, "rows of 128 bytes"),
        ({"table": 1 << 40}, "does not lie on the disk"),
        ({"table": 0}, "does not lie on the disk"),
        ({"checksum": 1}, "the checksum of its table is wrong"),
        ({"first": 150}, "are not among those that it may use"),
    ],
    ids=str,
)
def test_a_gpt_that_is_not_to_be_trusted(wrong: dict[str, int], said: str, tmp_path: Path) -> None:
    table = Gpt(SIZE, 512, (100, 199, "eins"))
    table.wrong = wrong
    table.write(tmp_path / "disk.img")
    assert said in refused(tmp_path / "disk.img", 1)


def test_gpts_that_programs_read_differently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.img"
    table = Gpt(SIZE, 512, (100, 199, "eins"), (150, 250, "zwei"))
    table.write(path)
    assert "its partitions 1 and 2 overlap" in refused(path, 1)
    table = Gpt(SIZE, 512, (100, 199, "eins"))
    table.protective = bytes(512)
    table.write(path)
    assert "nothing in its first sector that speaks of it" in refused(path, 1)
    table.protective = mbr((0x83, 5000, 10), (0xEE, 1, 99))
    table.write(path)
    assert found(path, 1) == (100 * 512, 100 * 512)
    assert "other partitions in its MBR" in caplog.text
    table.protective = mbr((0x83, 5000, 10))
    table.write(path)
    assert found(path, 1) == (5000 * 512, 10 * 512)
    assert "an old GPT" in caplog.text
    table = Gpt(SIZE, 512, (100, 199, "eins"))
    table.write(path)
    other = Gpt(SIZE, 512, (100, 299, "eins"))
    at = other.last - other.sectors
    with open(path, "r+b") as file:
        file.seek(at * 512)
        file.write(other.rows)
        file.seek(other.last * 512)
        file.write(other.header(other.last, 1, at))
    assert found(path, 1) == (100 * 512, 100 * 512)
    assert "its two GPT tables differ" in caplog.text


def test_random_tables_are_refused_or_lie_on_the_disk(tmp_path: Path) -> None:
    rng = random.Random(11)
    for _ in range(150 * THOROUGH):
        rows = [
            (rng.choice([0, 5, 0x83, 0xEE]), rng.randrange(3000), rng.randrange(3000))
            for _ in range(4)
        ]
        writes = [(0, mbr(*rows))]
        for _ in range(3):
            links = [(rng.choice([0, 5, 0x83]), rng.randrange(99), rng.randrange(99))] * 2
            writes.append((rng.randrange(3000) * 512, mbr(*links)))
        path = disk(tmp_path, *writes, size=2 * MIB)
        for number in range(1, 8):
            try:
                start, length = found(path, number)
            except TapError:
                continue
            assert 0 <= start < start + length <= 2 * MIB


def test_the_commands_say_what_it_is(tmp_path: Path) -> None:
    path = disk(tmp_path, (0, mbr((0x83, 2048, 4096))))
    out, _ = tapdisk("info", f"part:1:{path}", "--json", status=0)
    [row] = json.loads(out) if out.startswith("[") else [json.loads(out)]
    assert row["format"]["table"] == "mbr"
    _, err = tapdisk("bench", "--rw", "write", f"part:1:{path}", status=1)
    assert "--force allows it" in err
    _, err = tapdisk("resize", f"part:1:{path}", "+1M", status=1)
    assert "cannot be resized" in err
    _, err = tapdisk("convert", f"part:1:{path}", path, "--force", status=1)
    assert "is the source, or one of its parents" in err
    assert zlib.crc32(path.read_bytes()[:512])

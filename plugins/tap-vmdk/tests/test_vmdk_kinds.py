"""Kinds and variants that qemu-img does not write, from small writers of our own."""

import random
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from vmdkwriters import GRAIN, cowd, descriptor, hosted, sesparse, split, stream


def sparse_content(rng: random.Random, size: int, pieces: int = 40) -> bytes:
    content = bytearray(size)
    for _ in range(pieces):
        at = rng.randrange(size)
        piece = rng.randbytes(min(rng.randint(1, 20_000), size - at))
        content[at : at + len(piece)] = piece
    return bytes(content)


def read(image: Path) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


def as_qemu(image: Path) -> bytes:
    raw = image.with_suffix(".raw")
    done = subprocess.run(
        [peer("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(image), str(raw)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return raw.read_bytes()


def extent(folder: Path, kind: str, line: str, content: bytes) -> Path:
    """A descriptor with one extent beside it."""
    image = folder / "disk.vmdk"
    (folder / "extent.vmdk").write_bytes(content)
    image.write_bytes(descriptor(kind, [line]))
    return image


@pytest.mark.parametrize("grain", [1, 8, 128])
def test_vmfs_sparse(tmp_path: Path, rng: random.Random, grain: int) -> None:
    content = sparse_content(rng, (5 << 20) + 512)
    line = f'RW {len(content) // 512} VMFSSPARSE "extent.vmdk"'
    image = extent(tmp_path, "vmfsSparse", line, cowd(content, grain=grain))
    assert read(image) == content
    assert as_qemu(image) == content
    assert read(tmp_path / "extent.vmdk") == content  # by itself, too
    with pytest.raises(tapcore.NotSupportedError, match=r"vmfsSparse \(COWD\) can only be read"):
        tapcore.open(f"vmdk:{image}", readonly=False)


def test_se_sparse(tmp_path: Path, rng: random.Random) -> None:
    content = bytearray(sparse_content(rng, (40 << 20) + 512))
    content[16 << 20 : 32 << 20] = bytes(16 << 20)  # a whole table of holes
    content[: 8 << 12] = bytes(8 << 12)
    made = sesparse(bytes(content), zero={0: 1, 5: 2})
    line = f'RW {len(content) // 512} SESPARSE "extent.vmdk"'
    image = extent(tmp_path, "seSparse", line, made)
    assert read(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        first = [(e.length, e.kind, e.present) for e in disk.extents(0, length=8 << 12)]
    assert first == [
        (4096, "zero", True),
        (4 << 12, "zero", False),
        (4096, "zero", True),
        (2 << 12, "zero", False),
    ]
    assert as_qemu(image) == content
    with pytest.raises(tapcore.NotSupportedError, match="seSparse can only be read"):
        tapcore.open(f"vmdk:{image}", readonly=False)


def test_an_se_sparse_file_that_needs_its_journal_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(sesparse(b"x" * 4096, replay=1))
    with pytest.raises(tapcore.NotSupportedError, match="journal"):
        read(image)
    image.write_bytes(sesparse(b"x" * 4096, flags=8))
    with pytest.raises(tapcore.NotSupportedError, match="unknown flags 0x8"):
        read(image)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_sparse_files_of_all_versions_without_a_descriptor(
    tmp_path: Path, rng: random.Random, version: int
) -> None:
    content = sparse_content(rng, (3 << 20) + 512)
    made = hosted(content, version=version)
    line = f'RW {len(content) // 512} SPARSE "extent.vmdk"'
    image = extent(tmp_path, "twoGbMaxExtentSparse", line, made)
    assert read(tmp_path / "extent.vmdk") == content
    assert read(image) == content
    assert as_qemu(image) == content


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(hosted(b"x" * 512, version=4))
    with pytest.raises(tapcore.NotSupportedError, match="version 4"):
        read(image)


def test_zeroed_grains_hide_the_parent(tmp_path: Path, rng: random.Random) -> None:
    below = rng.randbytes(1 << 20)
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    line = f'RW {len(below) // 512} SPARSE "x.vmdk"'
    base.write_bytes(hosted(below, text=descriptor("monolithicSparse", [line])))
    own = bytearray(len(below))
    own[3 * GRAIN : 4 * GRAIN] = rng.randbytes(GRAIN)
    text = descriptor(
        "monolithicSparse", [line], parentCID="12345678", parentFileNameHint='"base.vmdk"'
    )
    child.write_bytes(hosted(bytes(own), text=text, zeroed=(1, 2)))
    want = bytearray(below)
    want[GRAIN : 4 * GRAIN] = own[GRAIN : 4 * GRAIN]
    assert read(child) == want
    assert as_qemu(child) == want


@pytest.mark.parametrize("damage", ["damage_gd", "damage_entry", "damage_table"])
def test_the_redundant_directory_helps_out(tmp_path: Path, rng: random.Random, damage: str) -> None:
    content = rng.randbytes(6 * GRAIN)
    image = tmp_path / "disk.vmdk"
    how = {damage: 3 if damage == "damage_table" else True}
    image.write_bytes(hosted(content, **how))  # type: ignore[arg-type]
    assert read(image) == content


def test_without_a_redundant_directory_damage_is_an_error(
    tmp_path: Path, rng: random.Random
) -> None:
    content = rng.randbytes(6 * GRAIN)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(hosted(content, damage_table=3, flags=1))
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=3 * GRAIN) == content[: 3 * GRAIN]
        assert disk.pread(4 * GRAIN, length=GRAIN) == content[4 * GRAIN : 5 * GRAIN]
        with pytest.raises(tapcore.IOFailedError):
            disk.pread(3 * GRAIN, length=512)
    with (
        tapcore.open(f"vmdk:{image}", readonly=False) as disk,
        pytest.raises(tapcore.IOFailedError),
    ):
        disk.pwrite(3 * GRAIN, b"x" * 512)
    image.write_bytes(hosted(content, damage_gd=True, flags=1))
    with pytest.raises(tapcore.ImageFormatError, match="grain directory"):
        read(image)


# ---- streams -----------------------------------------------------------------------------------


STREAMS = {
    "footer": {},
    "no end mark": {"end": b""},
    "padded": {"end": bytes(20_000)},
    "no marker": {"footer_marker": False},
    "directory in header": {"gd_in_header": True},
    "no markers at all": {"markers": False, "gd_in_header": True, "version": 1},
    "version 1": {"version": 1},
}


@pytest.mark.parametrize("variant", STREAMS)
def test_streams(tmp_path: Path, rng: random.Random, variant: str) -> None:
    content = sparse_content(rng, (34 << 20) + 512)
    line = f'RDONLY {len(content) // 512} SPARSE "call-me-stream.vmdk"'
    text = descriptor("streamOptimized", [line])
    image = tmp_path / "disk.vmdk"
    image.write_bytes(stream(content, text=text, **STREAMS[variant]))  # type: ignore[arg-type]
    assert read(image) == content
    if variant in ("footer", "directory in header", "version 1"):
        assert as_qemu(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        for _ in range(30):  # small reads, from grains that are kept and others
            at = rng.randrange(len(content) - 5000)
            assert disk.pread(at, length=5000) == content[at : at + 5000]
        kinds = {e.kind: 0 for e in disk.extents()}
        stored = sum(e.length for e in disk.extents() if e.kind == "compressed")
    assert set(kinds) == {"compressed", "zero"}
    assert -(-stored // GRAIN) == len(split(content, GRAIN))


def test_a_stream_that_was_cut_short_says_so(tmp_path: Path, rng: random.Random) -> None:
    line = 'RDONLY 2048 SPARSE "call-me-stream.vmdk"'
    made = stream(rng.randbytes(1 << 20), text=descriptor("streamOptimized", [line]))
    image = tmp_path / "disk.vmdk"
    image.write_bytes(made[: len(made) // 2])
    with pytest.raises(tapcore.ImageFormatError, match="cut short, or never finished"):
        read(image)


def test_a_grain_that_inflates_to_more_is_bounded_and_damage_is_an_error(
    tmp_path: Path, rng: random.Random
) -> None:
    content = rng.randbytes(2 * GRAIN)
    line = f'RDONLY {len(content) // 512} SPARSE "s.vmdk"'
    made = bytearray(stream(content, text=descriptor("streamOptimized", [line])))
    made[128 * 512 + 200] ^= 0xFF
    image = tmp_path / "disk.vmdk"
    image.write_bytes(made)
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        with pytest.raises(tapcore.IOFailedError):
            disk.pread(0, length=512)
        assert disk.pread(GRAIN, length=GRAIN) == content[GRAIN:]


# ---- several extents ----------------------------------------------------------------------------


def test_extents_of_every_kind_in_one_disk(tmp_path: Path, rng: random.Random) -> None:
    parts = [rng.randbytes(3 << 16) for _ in range(5)] + [bytes(1 << 16)]
    (tmp_path / "flat.vmdk").write_bytes(b"?" * 1024 + parts[0])
    (tmp_path / "sparse.vmdk").write_bytes(hosted(parts[1]))
    (tmp_path / "cowd.vmdk").write_bytes(cowd(parts[2]))
    (tmp_path / "se.vmdk").write_bytes(sesparse(parts[3]))
    (tmp_path / "stream.vmdk").write_bytes(stream(parts[4], text=descriptor("x", [])))
    count = len(parts[0]) // 512
    image = tmp_path / "disk.vmdk"
    lines = [
        f'RW {count} FLAT "flat.vmdk" 2',
        f'RW {count} SPARSE "sparse.vmdk"',
        f'RW {count} VMFSSPARSE "cowd.vmdk"',
        f'RW {count} SESPARSE "se.vmdk"',
        f'RDONLY {count} SPARSE "stream.vmdk"',
        "RW 128 ZERO",
    ]
    image.write_bytes(descriptor("custom", lines))
    content = b"".join(parts)
    assert read(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        for _ in range(50):
            at = rng.randrange(len(content))
            length = rng.randint(1, len(content) - at)
            assert disk.pread(at, length=length) == content[at : at + length]
        stored = {e.kind for e in disk.extents(0, length=12 << 16)}
        kinds = [e.kind for e in disk.extents(12 << 16)]
        assert stored == {"data"}
        assert kinds == ["compressed", "zero"]
        info = disk.info()
    assert [e["type"] for e in info["extents"]] == [line.split()[2] for line in lines]
    with pytest.raises(tapcore.NotSupportedError, match=r"cowd\.vmdk"):
        tapcore.open(f"vmdk:{image}", readonly=False)


def test_a_flat_file_of_vmfs(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(10240)
    image = extent(tmp_path, "vmfs", 'RW 20 VMFS "extent.vmdk"', content)
    assert read(image) == content
    assert as_qemu(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(100, b"written")
    assert (tmp_path / "extent.vmdk").read_bytes()[100:107] == b"written"


def test_an_embedded_descriptor_may_name_other_files(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(1 << 16)
    (tmp_path / "flat.vmdk").write_bytes(content)
    text = descriptor("monolithicFlat", ['RW 128 FLAT "flat.vmdk" 0'])
    image = tmp_path / "disk.vmdk"
    image.write_bytes(hosted(b"", text=text, capacity=0, gdOffset=0, rgdOffset=0))
    assert read(image) == content


def test_an_extent_without_access_can_not_be_read(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    (tmp_path / "flat.vmdk").write_bytes(b"a" * 512)
    lines = ['RW 1 FLAT "flat.vmdk" 0', 'NOACCESS 1 FLAT "flat.vmdk" 0']
    image.write_bytes(descriptor("custom", lines))
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=512) == b"a" * 512
        with pytest.raises(tapcore.IOFailedError, match="Permission denied"):
            disk.pread(512, length=512)


def test_other_encodings_of_names(tmp_path: Path) -> None:
    for encoding, codec in (("windows-1252", "cp1252"), ("UTF-8", "utf-8"), ("GBK", "gbk")):
        name = "Gerät.vmdk" if encoding != "GBK" else "磁盘.vmdk"
        (tmp_path / name).write_bytes(b"e" * 512)
        text = descriptor("monolithicFlat", [f'RW 1 FLAT "{name}" 0'], encoding=f'"{encoding}"')
        image = tmp_path / "disk.vmdk"
        image.write_bytes(text.decode().encode(codec))
        assert read(image) == b"e" * 512


def test_flat_extents_share_a_file(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(4096)
    (tmp_path / "flat.vmdk").write_bytes(content)
    image = tmp_path / "disk.vmdk"
    lines = ['RW 4 FLAT "flat.vmdk" 4', 'RW 4 FLAT "flat.vmdk" 0']
    image.write_bytes(descriptor("custom", lines))
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        assert disk.pread(0, length=4096) == content[2048:] + content[:2048]
        disk.pwrite(2000, b"across the two" * 10)
    assert read(image)[2000:2140] == b"across the two" * 10

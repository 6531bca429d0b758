"""Every kind of image that QEMU makes reads byte for byte as QEMU reads it.

It began as the table of what other readers get wrong: compressed clusters, the more so of 512 bytes
and of 2 MiB, zstd, extended L2 entries, data files, overlays larger than their parent, encryption.
"""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from qcow2tools import (
    MIB,
    PASSPHRASE,
    content_by_qemu,
    convert,
    create,
    qemu_img,
    qemu_io,
    source_content,
)

SIZE = 11 * MIB + 3 * 512
"""Past the 10.1 MiB from which on a default compressed image has been read wrongly elsewhere."""

SMALL = 3 * MIB + 512
"""Where the size does not matter and the clusters are many."""

CLUSTER_SIZES = [1 << bits for bits in range(9, 22)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A raw disk of every sort of content."""
    rng = random.Random(f"{__name__}")
    path = tmp_path_factory.mktemp("source") / "source.raw"
    path.write_bytes(source_content(rng, SIZE))
    return path


@pytest.fixture(scope="module")
def small(source: Path) -> Path:
    """Its beginning."""
    path = source.with_name("small.raw")
    path.write_bytes(source.read_bytes()[:SMALL])
    return path


def reads_as(disk: tapcore.Disk, want: bytes, rng: random.Random, *, pieces: int = 60) -> None:
    """The whole disk, and pieces of any shape."""
    assert disk.size == len(want)
    got = disk.pread(0, length=disk.size)
    if got != want:
        at = next(n for n in range(0, len(want), 512) if got[n : n + 512] != want[n : n + 512])
        raise AssertionError(f"differs from byte {at} on")
    for _ in range(pieces):
        at = rng.randrange(len(want))
        length = min(rng.choice((1, 511, 512, 5000, 70_000, 300_000)), len(want) - at)
        assert disk.pread(at, length=length) == want[at : at + length], (at, length)


def check_reading(image: Path, rng: random.Random, *, encrypted: bool = False) -> bytes:
    """Against QEMU, in one go and in pieces, as a whole and through its extents."""
    want = content_by_qemu(image, encrypted=encrypted)
    keys = PASSPHRASE.encode() if encrypted else None
    with tapcore.open(f"qcow2:{image}", readonly=True, keys=keys) as disk:
        reads_as(disk, want, rng)
        at = 0
        for run in disk.extents():
            assert run.start == at
            if run.kind == "zero":
                assert not any(want[at : run.end]), f"a hole with content at {at}"
            elif run.filename and run.kind == "data" and not encrypted:
                with open(run.filename, "rb") as file:
                    file.seek(run.offset)
                    stored = file.read(run.length).ljust(run.length, b"\0")
                assert stored == want[at : run.end], f"an extent with a wrong place at {at}"
            at = run.end
        assert at == disk.size
    return want


# ---- what convert makes -----------------------------------------------------------------------


@attrs.frozen
class Row:
    """A row of the matrix: options of `qemu-img convert`."""

    name: str
    options: dict[str, Any]
    compress: bool = False
    large: bool = False


ROWS = [
    Row("v2", {"compat": "0.10"}, large=True),
    Row("v3", {"compat": "1.1"}, large=True),
    Row("lazy", {"lazy_refcounts": "on"}),
    *(Row(f"refcount-{n}", {"refcount_bits": n}) for n in (1, 2, 4, 8, 16, 32, 64)),
    *(
        Row(f"preallocation-{how}", {"preallocation": how})
        for how in ("metadata", "falloc", "full")
    ),
    *(Row(f"cluster-{size}", {"cluster_size": size}) for size in CLUSTER_SIZES),
    Row("zlib", {}, compress=True, large=True),
    Row("zlib-v2", {"compat": "0.10"}, compress=True),
    *(
        Row(f"zlib-{size}", {"cluster_size": size}, compress=True)
        for size in (512, 1024, 4096, 262144, 2 * MIB)
    ),
    Row("zlib-refcount-1", {"refcount_bits": 1}, compress=True),
    Row("zlib-refcount-64", {"refcount_bits": 64, "cluster_size": 512}, compress=True),
    *(
        Row(f"zstd-{size}", {"compression_type": "zstd", "cluster_size": size}, compress=True)
        for size in (512, 65536, 2 * MIB)
    ),
    Row("zstd-uncompressed", {"compression_type": "zstd"}),
    *(
        Row(f"extended-{size}", {"extended_l2": "on", "cluster_size": size})
        for size in (16384, 65536, 2 * MIB)
    ),
    Row("extended-zlib", {"extended_l2": "on"}, compress=True, large=True),
    Row("extended-zlib-16384", {"extended_l2": "on", "cluster_size": 16384}, compress=True),
    Row("extended-zstd", {"extended_l2": "on", "compression_type": "zstd"}, compress=True),
    Row(
        "extended-preallocated",
        {"extended_l2": "on", "preallocation": "metadata", "cluster_size": 32768},
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_converted(row: Row, source: Path, small: Path, tmp_path: Path, rng: random.Random) -> None:
    raw = source if row.large else small
    image = convert(raw, tmp_path / "disk.qcow2", compress=row.compress, **row.options)
    assert check_reading(image, rng) == raw.read_bytes()


@pytest.mark.parametrize("raw_too", ["off", "on"])
@pytest.mark.parametrize("extended", ["off", "on"])
def test_a_data_file(
    raw_too: str, extended: str, small: Path, tmp_path: Path, rng: random.Random
) -> None:
    image = tmp_path / "disk.qcow2"
    data = tmp_path / "disk.data"
    options = {"data_file": data.name, "data_file_raw": raw_too, "extended_l2": extended}
    create(image, SMALL, **options)
    qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", small, image)
    assert check_reading(image, rng) == small.read_bytes()


@pytest.mark.parametrize("method", ["luks", "aes"])
@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_encrypted(
    method: str, cluster_size: int, small: Path, tmp_path: Path, rng: random.Random
) -> None:
    image = convert(
        small, tmp_path / "disk.qcow2", encrypt_format=method, cluster_size=cluster_size
    )
    assert check_reading(image, rng, encrypted=True) == small.read_bytes()


@pytest.mark.parametrize("method", ["luks", "aes"])
def test_encrypted_without_the_key_or_with_a_wrong_one(method: str, tmp_path: Path) -> None:
    """Never ciphertext as data: there is no content without the key."""
    image = create(tmp_path / "disk.qcow2", MIB, encrypt_format=method)
    with pytest.raises(tapcore.TapError, match="key"):
        tapcore.open(f"qcow2:{image}", readonly=True)
    if method == "luks":  # the older method cannot tell a wrong key
        with pytest.raises(tapcore.TapError, match=r"key|passphrase"):
            tapcore.open(f"qcow2:{image}", readonly=True, keys=b"wrong")


# ---- what came to be by writing -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 512},
        {"cluster_size": 2 * MIB},
        {"compat": "0.10"},
        {"extended_l2": "on"},
        {"extended_l2": "on", "cluster_size": 16384},
        {"lazy_refcounts": "on", "refcount_bits": 64},
        {"data_file": "disk.data"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_written_zeroed_and_discarded_at_random(
    options: dict[str, Any], tmp_path: Path, rng: random.Random
) -> None:
    """Parts of clusters and subclusters in every state, over a parent with content."""
    parent = tmp_path / "parent.raw"
    parent.write_bytes(source_content(rng, SMALL))
    image = tmp_path / "disk.qcow2"
    if "data_file" in options:
        create(image, SMALL, **options)
    else:
        create(image, SMALL + MIB, parent=parent.name, form="raw", **options)
    qemu_io(image, *random_commands(rng, SMALL, 40))
    check_reading(image, rng)


def random_commands(rng: random.Random, size: int, count: int) -> list[str]:
    """Commands for `qemu-io`."""
    commands = []
    for _ in range(count):
        unit = rng.choice((512, 2048, 4096, 65536))
        at = rng.randrange(size // unit) * unit
        length = min(rng.randint(1, max(256 * 1024 // unit, 2)) * unit, size - at)
        byte = rng.randint(1, 255)
        what = rng.choice((f"write -P {byte}", f"write -P {byte}", "write -z", "write -z -u"))
        commands.append(f"{rng.choice((what, what, 'discard'))} {at} {length}")
    return commands


@pytest.mark.parametrize("child_size", [SMALL - 2 * MIB, SMALL, SMALL + 5 * MIB + 512])
@pytest.mark.parametrize("cluster_size", [512, 65536, 2 * MIB])
def test_an_overlay_smaller_and_larger_than_its_parent(
    child_size: int, cluster_size: int, small: Path, tmp_path: Path, rng: random.Random
) -> None:
    parent = convert(small, tmp_path / "parent.qcow2", cluster_size=4096, compress=True)
    image = tmp_path / "child.qcow2"
    create(image, child_size, parent=parent.name, cluster_size=cluster_size)
    if child_size > SMALL:
        qemu_io(image, f"write -P 7 {SMALL - 100 * 512} 300k", f"write -P 8 {child_size - 512} 512")
    qemu_io(image, "write -P 9 1000k 3k", "write -z 500k 70k", "discard 100k 200k")
    want = check_reading(image, rng)
    assert len(want) == child_size


def test_a_chain_of_five(small: Path, tmp_path: Path, rng: random.Random) -> None:
    """Every sort of layer over every other."""
    layers: list[dict[str, Any]] = [
        {"cluster_size": 512, "compat": "0.10"},
        {"extended_l2": "on", "cluster_size": 16384},
        {"cluster_size": 2 * MIB},
        {"compression_type": "zstd"},
    ]
    below, form = small, "raw"
    (tmp_path / "raw").symlink_to(small)
    below = tmp_path / "raw"
    for number, options in enumerate(layers):
        image = tmp_path / f"layer{number}.qcow2"
        create(image, SMALL + number * 1024, parent=below.name, form=form, **options)
        qemu_io(image, *random_commands(rng, SMALL, 6))
        below, form = image, "qcow2"
    want = content_by_qemu(below)
    with tapcore.open(f"qcow2:{below}", readonly=True, parents="any") as disk:
        reads_as(disk, want, rng)


def test_snapshots(tmp_path: Path, rng: random.Random) -> None:
    """Each reads as it was, also after a resize; the disk as it is."""
    image = create(tmp_path / "disk.qcow2", SMALL, cluster_size=4096)
    for name in ("first", "second", "third"):
        qemu_io(image, *random_commands(rng, SMALL, 15))
        qemu_img("snapshot", "-c", name, image)
    qemu_img("resize", image, SMALL + MIB)
    qemu_io(image, *random_commands(rng, SMALL + MIB, 15))
    check_reading(image, rng)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert [s.name for s in disk.snapshots()] == ["first", "second", "third"]
        by_id = {s.id: s.name for s in disk.snapshots()}
    for key, name in [*by_id.items(), *((name, name) for name in by_id.values())]:
        want = content_by_qemu(image, snapshot=name)[:SMALL]
        with tapcore.open(f"qcow2:{image}", readonly=True, snapshot=key) as disk:
            reads_as(disk, want, rng, pieces=10)


def test_bitmaps_do_not_disturb(small: Path, tmp_path: Path, rng: random.Random) -> None:
    image = convert(small, tmp_path / "disk.qcow2")
    for name, granularity in (("one", 65536), ("two", 512)):
        qemu_img("bitmap", "--add", "-g", granularity, image, name)
    qemu_io(image, *random_commands(rng, SMALL, 10))
    qemu_img("bitmap", "--disable", image, "two")
    before = image.read_bytes()
    check_reading(image, rng)
    assert image.read_bytes() == before


# ---- what is to be refused ----------------------------------------------------------------------


def patched(image: Path, offset: int, layout: str, *values: int) -> None:
    """Overwrite fields of the header."""
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, *values))


def _opened(image: Path, *, readonly: bool) -> str:
    """What is said when an image is opened and read; "" where nothing is."""
    try:
        with tapcore.open(f"qcow2:{image}", readonly=readonly) as disk:
            disk.pread(0, length=disk.size)
    except tapcore.TapError as exc:
        return exc.message
    return ""


def test_a_forged_l1_size_is_refused(small: Path, tmp_path: Path) -> None:
    image = convert(small, tmp_path / "disk.qcow2")
    patched(image, 36, ">I", 0xFFFF_FFFF)
    assert "L1 table" in _opened(image, readonly=True)


def test_an_unknown_incompatible_feature_is_refused_by_the_name_that_the_image_gives_it(
    small: Path, tmp_path: Path
) -> None:
    image = convert(small, tmp_path / "disk.qcow2")
    content = bytearray(image.read_bytes())
    content[72:80] = struct.pack(">Q", 1 << 63 | 1 << 37)
    at = content.index(b"dirty bit") - 2  # the table of names: (type, bit, name) in 48 bytes each
    content[at : at + 48] = struct.pack(">BB46s", 0, 63, b"the flux capacitor")
    image.write_bytes(content)
    for readonly in (True, False):
        said = _opened(image, readonly=readonly)
        assert "the flux capacitor" in said
        assert "37" in said
        assert qemu_img("info", image, status=1) == ""


def test_an_image_marked_corrupt_is_read_and_not_written(small: Path, tmp_path: Path) -> None:
    image = convert(small, tmp_path / "disk.qcow2")
    patched(image, 72, ">Q", 2)
    assert not _opened(image, readonly=True)
    assert "corrupt" in _opened(image, readonly=False)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=SMALL) == small.read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: patched(image, 4, ">I", 4), "version 4"),
        (lambda image: patched(image, 4, ">I", 1), "version 1"),
        (lambda image: patched(image, 20, ">I", 22), "cluster size"),
        (lambda image: patched(image, 20, ">I", 8), "cluster size"),
        (lambda image: patched(image, 96, ">I", 7), "refcount width"),
        (lambda image: patched(image, 32, ">I", 3), "encrypted"),
        (lambda image: patched(image, 104, ">B", 1), "compression"),
        (lambda image: patched(image, 72, ">Q", 1 << 3), "compression"),
        (lambda image: patched(image, 40, ">Q", 0x12345), "L1 table"),
        (lambda image: patched(image, 48, ">Q", 0x12345), "refcount table"),
        (lambda image: patched(image, 0, ">I", 0), "not a qcow2 image"),
    ],
    ids=[
        "version-4",
        "version-1",
        "cluster-bits-22",
        "cluster-bits-8",
        "refcount-order-7",
        "crypt-method",
        "compression-without-feature",
        "feature-without-compression",
        "l1-unaligned",
        "reftable-unaligned",
        "magic",
    ],
)
def test_an_impossible_header_is_refused(
    change: Callable[[Path], None], said: str, small: Path, tmp_path: Path
) -> None:
    image = convert(small, tmp_path / "disk.qcow2")
    change(image)
    assert said in _opened(image, readonly=True)

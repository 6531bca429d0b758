"""Images from strangers: damaged at random in every structure, and the known kinds of attack.

Nothing but TapError and OSError comes of them; no hang, no flood of memory, nothing opened that the
policy does not allow, and a table of the image is never overwritten with data.
"""

import os
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from backports import zstd

import tapcore
from qcow2damage import (
    HEADER_FIELDS,
    compressed_bomb,
    damages,
    extreme_values,
    good_words,
    read_it,
    try_everything,
    watched,
    with_field,
)
from qcow2tools import MIB, assert_clean, checked, convert, create, qemu_img, qemu_io
from qcow2walk import COMPRESSED, COPIED, Walk, walk
from tapcore.errors import ReferencePolicyError, TapError
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

LAYOUTS: dict[str, dict[str, object]] = {
    "default": {},
    "512": {"cluster_size": 512},
    "4096-refcount-64": {"cluster_size": 4096, "refcount_bits": 64},
    "512-refcount-1": {"cluster_size": 512, "refcount_bits": 1},
    "v2": {"compat": "0.10", "cluster_size": 1024},
    "extended": {"extended_l2": "on", "cluster_size": 16384},
    "zstd": {"compression_type": "zstd", "cluster_size": 4096},
    "lazy": {"lazy_refcounts": "on", "cluster_size": 4096},
    "luks": {"encrypt_format": "luks", "cluster_size": 4096},
}


def make(folder: Path, options: dict[str, object]) -> Path:
    """A small image with some of everything: plain, compressed, zero, snapshots, bitmaps."""
    rng = random.Random(1)
    raw = folder / "source.raw"
    raw.write_bytes(b"text " * 20_000 + rng.randbytes(60_000) + bytes(100_000) + b"end " * 9_000)
    if "encrypt_format" in options:
        return convert(raw, folder / "disk.qcow2", **options)
    image = convert(raw, folder / "disk.qcow2", compress=True, **options)
    qemu_io(image, "write -P 5 60k 40k", "write -z 200k 30k", "write -P 6 250k 512")
    if options.get("refcount_bits") != 1:
        qemu_img("snapshot", "-c", "one", image)
        qemu_io(image, "write -P 7 64k 8k")
        qemu_img("snapshot", "-c", "two", image)
        qemu_io(image, "write -P 8 0 4k")
    if options.get("compat") != "0.10":
        qemu_img("bitmap", "--add", "-g", 512, image, "marks")
        qemu_io(image, "write -P 9 128k 20k")
    return image


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Walk]:
    """An undamaged image of a layout; each is made once."""
    made: dict[str, Walk] = {}

    def one(layout: str) -> Walk:
        if layout not in made:
            image = make(tmp_path_factory.mktemp(layout), LAYOUTS[layout])
            made[layout] = good_words(image.read_bytes())
        return made[layout]

    return one


def seen(image: Path, *, readonly: bool = True) -> str:
    """What is said of an image that is opened and read, or written; "" where nothing is."""
    try:
        with tapcore.open(f"qcow2:{image}", readonly=readonly) as disk:
            for at in range(0, disk.size, MIB):
                disk.pread(at, MIB)
            if not readonly:
                disk.pwrite(0, b"w" * 70_000)
                disk.sync()
    except TapError as exc:
        return exc.message
    return ""


# ---- damage at random ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_anywhere(
    layout: str, good: Callable[[str], Walk], tmp_path: Path, rng: random.Random
) -> None:
    """Whatever is changed; and what a repair calls whole is whole for QEMU as well."""
    image = tmp_path / "bad.qcow2"
    image.write_bytes(good(layout).content)
    try_everything(image, rng, "nothing wrong")  # one-time costs
    for number, damage in enumerate(damages(good(layout), rng, 22 * THOROUGH)):
        image.write_bytes(damage.content)
        whole = try_everything(image, rng, f"{damage.what} (number {number})")
        if whole and number % 4 == 0:
            assert_whole(image, damage.what)


def assert_whole(image: Path, what: str) -> None:
    """QEMU finds nothing wrong with an image, if it knows it at all."""
    with suppress(AssertionError):
        qemu_img("info", "-f", "qcow2", image)
        said = checked(image)
        if said.get("corruptions") or said.get("leaks"):
            pytest.fail(f"repaired, and QEMU says {said}, of an image with {what}")


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_every_header_field_at_its_limits(
    field: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """0, 1, the sign bit, all bits, past the end of the file, over another structure."""
    image = tmp_path / "bad.qcow2"
    for layout in ("default", "512"):
        image.write_bytes(good(layout).content)
        read_it(image)
        for value in extreme_values(good(layout), HEADER_FIELDS[field][1]):
            image.write_bytes(with_field(good(layout).content, field, value))
            what = f"an image with {field} = {value:#x}"
            with watched(f"inspecting {what}", seconds=4.0):
                inspect_image(f"qcow2:{image}")
            with watched(f"reading {what}", seconds=4.0):
                read_it(image)
            with watched(f"checking {what}", seconds=4.0):
                check_image(f"qcow2:{image}")


def test_an_image_cut_off_anywhere(
    good: Callable[[str], Walk], tmp_path: Path, rng: random.Random
) -> None:
    image = tmp_path / "cut.qcow2"
    content = good("512").content
    lengths = {*range(0, 130, 7), *(rng.randrange(len(content)) for _ in range(25 * THOROUGH))}
    for length in sorted(lengths):
        image.write_bytes(content[:length])
        try_everything(image, rng, f"{length} bytes of {len(content)}")


# ---- QEMU's CVEs of 2014: header fields that were believed --------------------------------------


@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0xFFFF_FFFF, 0x2000_0000, 0x0040_0001])
def test_cve_2014_0144_l1_size(value: int, good: Callable[[str], Walk], tmp_path: Path) -> None:
    """An L1 table larger than 32 MiB, or than the file."""
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "l1_size", value))
    with watched("a large L1 table", seconds=4.0, memory=8 * MIB):
        assert "L1 table" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF_FFFF_0000, 0x1234_5678_90AB_CDEF, 1 << 63, 513])
def test_cve_2014_0144_l1_offset(value: int, good: Callable[[str], Walk], tmp_path: Path) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "l1_table_offset", value))
    assert "L1 table" in seen(image)


def test_cve_2014_0144_l1_too_small(good: Callable[[str], Walk], tmp_path: Path) -> None:
    """For the disk's size: the rest of the disk would lie outside of the table."""
    image = tmp_path / "bad.qcow2"
    for field, value in (("l1_size", 0), ("size", 1 << 62), ("size", (1 << 63) - 512)):
        image.write_bytes(with_field(good("default").content, field, value))
        assert seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0xFFFF_FFFF, 0x0002_0001, 0])
def test_cve_2014_0144_refcount_table_size(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "refcount_table_clusters", value))
    with watched("a large refcount table", seconds=4.0, memory=8 * MIB):
        assert "refcount table" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF_FFFF_0000, 0x12_3456, (1 << 56) - 65536])
def test_cve_2014_0144_refcount_table_offset(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "refcount_table_offset", value))
    assert "refcount table" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0xFFFF_FFFF, 65537])
def test_cve_2014_0144_number_of_snapshots(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "nb_snapshots", value))
    with watched("many snapshots", seconds=4.0, memory=8 * MIB):
        assert "snapshots" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF_FFFF_0000, 0x1234_5678_90AB_CDEF, 1 << 63])
def test_cve_2014_0144_snapshot_table_offset(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "snapshots_offset", value))
    assert "snapshot table" in seen(image)


@pytest.mark.parametrize("value", [0, 1, 71, 103, 105, 65544, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_cve_2014_0144_header_length(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "header_length", value))
    assert "header" in seen(image)


@pytest.mark.parametrize("length", [0x7FFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFF8, 65536])
def test_cve_2014_0144_header_extension_length(
    length: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    for _, offset, _ in good("default").extensions:
        content = bytearray(good("default").content)
        content[offset - 4 : offset] = length.to_bytes(4, "big")
        image.write_bytes(content)
        assert "extension" in seen(image)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0xFFFF_FFFF, 5), (1 << 63, 5), (200, 0xFFFF_FFFF), (200, 0x7FFF_FFFF), (200, 1024), (1, 5)],
)
def test_cve_2014_0143_backing_file_name(
    offset: int, size: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """A name outside of the first cluster, or too long."""
    image = tmp_path / "bad.qcow2"
    content = with_field(good("default").content, "backing_file_offset", offset)
    image.write_bytes(with_field(content, "backing_file_size", size))
    assert seen(image)


@pytest.mark.parametrize("bits", [0, 1, 8, 22, 31, 32, 63, 64, 0xFFFF_FFFF])
def test_cve_2014_0142_cluster_bits(bits: int, good: Callable[[str], Walk], tmp_path: Path) -> None:
    """A shift that is too large, or a division by what it gives."""
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "cluster_bits", bits))
    assert "cluster size" in seen(image)


@pytest.mark.parametrize(
    ("at", "layout"), [(0, ">Q"), (8, ">I"), (12, ">H"), (14, ">H"), (36, ">I")]
)
@pytest.mark.parametrize("value", [-1, 0x7FFF_FFFF_FFFF_FFFF, 0x1234_5678_90AB_CDEF])
def test_cve_2014_0145_a_snapshots_own_fields(
    at: int,
    layout: str,
    value: int,
    good: Callable[[str], Walk],
    tmp_path: Path,
    rng: random.Random,
) -> None:
    """Of a snapshot: its L1 table's offset and size, the lengths of its id, name and extra data."""
    image = tmp_path / "bad.qcow2"
    content = bytearray(good("default").content)
    width = {"Q": 8, "I": 4, "H": 2}[layout[1]]
    place = good("default").snapshots_offset + at
    content[place : place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    image.write_bytes(content)
    try_everything(image, rng, f"{value:#x} at byte {at} of its first snapshot")


def test_cve_2014_0146_an_open_that_fails_half_way(
    good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """After any failure all that was taken is given back, and the next image opens."""
    image = tmp_path / "bad.qcow2"
    for field in HEADER_FIELDS:
        image.write_bytes(with_field(good("default").content, field, -1))
        with watched(f"{field} with all bits"):  # it counts descriptors
            seen(image)
    image.write_bytes(good("default").content)
    assert not seen(image)


@pytest.mark.parametrize("layout", ["default", "512", "4096-refcount-64", "extended", "v2"])
def test_cve_2014_0147_everything_is_counted_as_free(
    layout: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """Refcounts of 0 must not lead data over the header and the tables."""
    content = bytearray(good(layout).content)
    for place in good(layout).places:
        if place.name.startswith("refcount block"):
            content[place.offset : place.offset + place.length] = bytes(place.length)
    image = tmp_path / "bad.qcow2"
    image.write_bytes(content)
    with watched("writing where all is free"), tapcore.open(f"qcow2:{image}") as disk:
        for at in range(0, disk.size - 5000, 30_000):
            with suppress(TapError):
                disk.pwrite(at, b"w" * 5000)
    tables_are_whole(image, bytes(content))


def tables_are_whole(image: Path, before: bytes) -> None:
    """Header and tables still are what they were: none was overwritten, or given back."""
    after = image.read_bytes()
    assert after[:72] == before[:72], "the header was overwritten"
    for place in walk(before).places:
        if "table" in place.name or place.name.startswith("refcount block"):
            part = after[place.offset : place.offset + place.length]
            assert b"wwwwwwww" not in part, f"{place.name} was overwritten"
            was = before[place.offset : place.offset + place.length]
            assert any(part) or not any(was), f"{place.name} was punched out"


@pytest.mark.parametrize("what", ["write", "part", "zero", "keep", "discard"])
@pytest.mark.parametrize("layout", ["default", "512", "extended"])
def test_overlapping_metadata_is_found_before_it_is_overwritten(
    layout: str, what: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """L2 entries that say that a table's cluster is data: the image is marked, and not harmed."""
    found = good(layout)
    table = next(place for place in found.places if place.name.startswith("L2 table 0"))
    image = tmp_path / "bad.qcow2"
    for place in [p for p in found.places if "of snapshot" not in p.name][:12]:
        if place.name in ("bitmap", "header"):  # an offset of 0 is none
            continue
        content = bytearray(found.content)
        entry = (place.offset & -found.cluster | COPIED).to_bytes(8, "big")
        if found.words == 2:
            entry += b"\0\0\0\0\xff\xff\xff\xff"
        content[table.offset : table.offset + len(entry)] = entry
        image.write_bytes(content)
        with watched(f"a {what} over {place.name}"), tapcore.open(f"qcow2:{image}") as disk:
            change_a_cluster(disk, 0, found.cluster, what)
        tables_are_whole(image, bytes(content))
        if what in ("write", "part"):
            assert walk(image.read_bytes()).incompatible & 2, f"{place.name}: not marked corrupt"


def change_a_cluster(disk: tapcore.Disk, at: int, cluster: int, what: str) -> None:
    """Write it, a part of it, zero it, or discard it."""
    if what in ("write", "part"):
        disk.pwrite(at, b"w" * (cluster if what == "write" else 512))
    elif what == "discard":
        disk.discard(at, cluster)
    else:
        disk.zero(at, cluster, unmap=what == "zero")


# ---- bombs: a little file that becomes much -----------------------------------------------------


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_cve_2015_4463_a_compressed_cluster_that_never_ends(
    method: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """Its stream gives many times a cluster: no more than that is taken out of it."""
    if method == "zlib":
        packer = zlib.compressobj(1, zlib.DEFLATED, -12)
        stream = b"".join(packer.compress(bytes(MIB)) for _ in range(16)) + packer.flush()
        layout = "default"
    else:
        stream = zstd.compress(bytes(1024 * MIB), 1)
        layout = "zstd"
    image = tmp_path / "bomb.qcow2"
    image.write_bytes(compressed_bomb(good(layout), stream))
    with (
        watched("a bomb", seconds=4.0, memory=16 * MIB),
        tapcore.open(f"qcow2:{image}", readonly=True) as disk,
    ):
        assert not any(disk.pread(0, 4096))


@pytest.mark.parametrize("window_log", [27, 31])
def test_a_zstd_cluster_that_wants_a_large_window(
    window_log: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """The window is memory too."""
    stream = zstd.compress(os.urandom(4096), options={zstd.CompressionParameter.window_log: 10})
    frame = bytearray(stream)
    frame[4] &= ~0x20  # not a single segment: the next byte is the window's size
    frame[5:5] = bytes([(window_log - 10) << 3])
    image = tmp_path / "window.qcow2"
    image.write_bytes(compressed_bomb(good("zstd"), bytes(frame)))
    with (
        watched("a large window", seconds=4.0, memory=16 * MIB),
        tapcore.open(f"qcow2:{image}", readonly=True) as disk,
    ):
        disk.pread(0, 4096)


def test_cve_2015_5162_a_huge_disk_in_a_small_file(tmp_path: Path) -> None:
    """Nothing is done in proportion to what an image only claims."""
    image = create(tmp_path / "huge.qcow2", 1 << 56, cluster_size=2 * MIB)
    with watched("a disk of 64 PiB", seconds=10.0, memory=24 * MIB):
        inspect_image(f"qcow2:{image}")
        image_info(f"qcow2:{image}")
        check_image(f"qcow2:{image}")
        with tapcore.open(f"qcow2:{image}") as disk:
            assert len(list(disk.extents())) == 1
            disk.pwrite(disk.size - 512, b"e" * 512)
            disk.discard(0, disk.size)
    assert_clean(image)


def test_sparse_file_does_not_justify_memory(good: Callable[[str], Walk], tmp_path: Path) -> None:
    """A file that is terabytes long, and empty, costs nothing to have tables in it."""
    image = tmp_path / "sparse.qcow2"
    image.write_bytes(with_field(good("default").content, "l1_size", (32 * MIB) // 8))
    os.truncate(image, 1 << 42)
    with watched("a sparse file", seconds=10.0, memory=160 * MIB):
        read_it(image)
    with watched("checking a sparse file", seconds=20.0, memory=160 * MIB):
        check_image(f"qcow2:{image}")


# ---- files that an image names ------------------------------------------------------------------


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """What this process opens meanwhile."""
    names: list[str] = []
    active = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if active and event == "open" and isinstance(args[0], str | bytes):
            names.append(os.fsdecode(args[0]))

    sys.addaudithook(hook)
    try:
        yield names
    finally:
        active = False


OUTSIDE = [
    "/etc/passwd",
    "../outside.raw",
    "json:{}",
    'json:{"driver":"file","filename":"/etc/passwd"}',
    "nbd://localhost:1/",
    "http://localhost/x",
    "fd:0",
    "file:/etc/passwd",
    "/dev/zero",
    "link",
    "",
    "x\0y",
    "x\x1b[2J",
]


def outside(folder: Path) -> Path:
    """A file and a link to it, outside of the folder that is returned."""
    (folder / "outside.raw").write_bytes(b"secret" * 1000)
    home = folder / "home"
    home.mkdir()
    (home / "link").symlink_to("../outside.raw")
    return home


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_cve_2024_32498_a_data_file_of_the_hosts(name: str, tmp_path: Path) -> None:
    """Also CVE-2024-4467: `json:` and URLs are only names, and no way out of the directory."""
    home = outside(tmp_path)
    image = create(home / "disk.qcow2", MIB, data_file="x" * max(len(name.encode()), 1))
    content = bytearray(image.read_bytes())
    found = next(e for e in walk(bytes(content)).extensions if e[0] == 0x44415441)
    content[found[1] - 4 : found[1] + len(name)] = len(name).to_bytes(4, "big") + name.encode()
    image.write_bytes(content)
    _opens_nothing_outside(image, name)


@pytest.mark.parametrize("name", OUTSIDE[:-3], ids=ascii)
@pytest.mark.parametrize("form", ["raw", "qcow2", ""])
def test_cve_2023_32684_a_parent_of_the_hosts(name: str, form: str, tmp_path: Path) -> None:
    home = outside(tmp_path)
    image = home / "disk.qcow2"
    words: list[object] = ["-F", form] if form else ["-F", "raw"]
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, *words, image, MIB)
    if not form:
        content = bytearray(image.read_bytes())
        at = content.index(b"\xe2\x79\x2a\xca")
        content[at : at + 4] = b"\x12\x34\x56\x78"  # an extension that nobody knows
        image.write_bytes(content)
    _opens_nothing_outside(image, name)


def _opens_nothing_outside(image: Path, name: str) -> None:
    with opened_files() as names:
        for readonly in (True, False):
            assert seen(image, readonly=readonly)
        inspection = inspect_image(f"qcow2:{image}")
        with suppress(TapError, OSError):
            image_info(f"qcow2:{image}")
        with suppress(TapError, OSError):
            check_image(f"qcow2:{image}")
    strange = [each for each in names if _is_outside(each, image)]
    assert not strange
    if name and "\0" not in name and name != "link":
        assert inspection.dangerous, inspection


def _is_outside(name: str, image: Path) -> bool:
    path = os.path.realpath(name)
    if path.startswith(("/proc/", sys.prefix, sys.base_prefix)) or path.endswith((".py", ".pyc")):
        return False
    return not path.startswith(str(image.parent)) and os.path.isfile(path)


def test_a_data_file_outside_is_opened_where_the_caller_allows_it(tmp_path: Path) -> None:
    home = outside(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    data = tmp_path / "elsewhere" / "disk.data"
    image = create(home / "disk.qcow2", MIB, data_file=data)
    with pytest.raises(ReferencePolicyError, match="--parents"):
        tapcore.open(f"qcow2:{image}", readonly=True)
    with tapcore.open(f"qcow2:{image}", parents=str(data.parent)) as disk:
        disk.pwrite(0, b"data")
        assert disk.pread(0, 4) == b"data"


def test_an_image_that_is_its_own_parent(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", image.name, "-F", "qcow2", image, MIB)
    with watched("a loop"):
        assert seen(image)


def test_an_image_that_is_its_own_data_file(tmp_path: Path) -> None:
    """Data would be written over its tables."""
    image = create(tmp_path / "disk.qcow2", MIB, data_file="disk.datax")
    image.write_bytes(image.read_bytes().replace(b"disk.datax", b"disk.qcow2"))
    before = image.read_bytes()
    with watched("a data file that is the image"):
        assert seen(image, readonly=False)
    assert image.read_bytes()[72:] == before[72:]


def test_cve_2008_2004_a_raw_disk_is_not_taken_for_an_image(tmp_path: Path) -> None:
    """A guest that writes a header onto its raw disk: the handle is what the caller said."""
    create(tmp_path / "inner.qcow2", MIB, parent="", form="raw")
    raw = tmp_path / "disk.raw"
    raw.write_bytes((tmp_path / "inner.qcow2").read_bytes())
    with tapcore.open(f"aio:{raw}", readonly=True) as disk:
        assert disk.size == -(-raw.stat().st_size // 512) * 512
    with pytest.raises(TapError):
        tapcore.open(str(raw))


# ---- loops and aliases in the tables ------------------------------------------------------------


def test_tables_that_point_to_themselves(
    good: Callable[[str], Walk], tmp_path: Path, rng: random.Random
) -> None:
    """An L1 entry that points to the L1 table, an L2 table or a refcount block shared by all."""
    found = good("512")
    l1, tables = found.l1_offset, [p.offset for p in found.places if "L2 table" in p.name]
    image = tmp_path / "bad.qcow2"
    for target in (l1, found.reftable_offset, 0, tables[0], found.snapshots_offset):
        content = bytearray(found.content)
        entry = (target | COPIED).to_bytes(8, "big")
        content[l1 : l1 + found.l1_size * 8] = entry * found.l1_size
        image.write_bytes(content)
        try_everything(image, rng, f"all L1 entries at {target:#x}")
        content = bytearray(found.content)
        count = found.reftable_clusters << (found.bits - 3)
        at = found.reftable_offset
        content[at : at + count * 8] = target.to_bytes(8, "big") * count
        image.write_bytes(content)
        try_everything(image, rng, f"all refcount table entries at {target:#x}")


BAD_ENTRIES = {
    "unaligned": 0x200 | COPIED,
    "past-the-end": (1 << 50) | COPIED,
    "past-the-end-and-shared": 1 << 50,
    "compressed-past-the-end": COMPRESSED | 1 << 50,
}


def with_bad_entry(found: Walk, bad: str) -> bytes:
    """The L2 entry of the third cluster is not possible."""
    table = next(place for place in found.places if place.name.startswith("L2 table 0"))
    at = table.offset + 8 * found.words * 2
    return found.content[:at] + BAD_ENTRIES[bad].to_bytes(8, "big") + found.content[at + 8 :]


@pytest.mark.parametrize("layout", ["default", "extended", "v2"])
@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_an_impossible_entry_is_not_read(
    bad: str, layout: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_bad_entry(good(layout), bad))
    at = 2 * good(layout).cluster
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, 512)
        if bad.startswith("past"):  # as QEMU: what lies past the end of the file reads as zeroes
            assert not any(disk.pread(at, 512))
        else:
            with pytest.raises(TapError):
                disk.pread(at, 512)


@pytest.mark.parametrize("what", ["write", "part", "zero", "keep", "discard"])
@pytest.mark.parametrize("layout", ["default", "extended", "v2"])
@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_an_impossible_entry_is_not_made_worse(
    bad: str, layout: str, what: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """Changing that cluster does not overwrite or give up what others refer to."""
    cluster = good(layout).cluster
    content = with_bad_entry(good(layout), bad)
    image = tmp_path / "bad.qcow2"
    image.write_bytes(content)
    with watched(f"a {what}"), tapcore.open(f"qcow2:{image}") as disk:
        change_a_cluster(disk, 2 * cluster, cluster, what)
    tables_are_whole(image, content)
    assert set(walk(image.read_bytes()).problems) <= set(walk(content).problems)

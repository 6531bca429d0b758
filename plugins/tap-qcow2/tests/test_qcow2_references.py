"""Files that an image names: none is opened that the policy does not allow, whatever it says."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import tapcore
from qcow2tools import MIB, create, qemu_img
from qcow2trials import seen, watched
from qcow2walk import walk
from tapcore.errors import ReferencePolicyError, TapError
from tapcore.interface.policy import ReferencePolicy
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image


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
    with tapcore.open(f"qcow2:{image}", parents=str(data.parent), readonly=False) as disk:
        disk.pwrite(0, b"data")
        assert disk.pread(0, length=4) == b"data"


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
        tapcore.open(str(raw), readonly=False)


def test_an_image_that_is_a_cd_or_a_vhd_as_well_is_a_danger(tmp_path: Path) -> None:
    """Whoever goes by the other signature opens something that nobody has looked at."""
    image = create(tmp_path / "disk.qcow2", MIB)
    assert inspect_image(image).verdict == "harmless"
    content = bytearray(image.read_bytes().ljust(256 << 10, b"\0"))
    content[32768:32775] = b"\1CD001\1"
    content[34816:34823] = b"\xffCD001\1"
    image.write_bytes(content)
    assert [f.code for f in inspect_image(image).findings] == ["two-formats"]
    assert inspect_image(f"qcow2:{image}").dangerous
    content[32768:32775] = content[34816:34823] = bytes(7)
    footer = bytearray(512)
    footer[:16] = b"conectix\0\0\0\2\0\1\0\0"
    footer[60:64] = b"\0\0\0\3"
    image.write_bytes(content + footer)
    assert [f.code for f in inspect_image(image).findings] == ["two-formats"]


def test_a_file_beside_it_is_another_tenants(tmp_path: Path) -> None:
    """Who does not say where an image's files may lie is told of each."""
    create(tmp_path / "base.qcow2", MIB)
    child = create(tmp_path / "child.qcow2", MIB, parent="base.qcow2")
    data = create(tmp_path / "data.qcow2", MIB, data_file=tmp_path / "data.bin")
    here = ReferencePolicy.from_words((str(tmp_path),))
    for image in (child, data):
        assert [f.code for f in inspect_image(image).findings if f.severity == "danger"] == [
            "names-file"
        ]
        assert inspect_image(image, parents=here).verdict == "harmless"


def test_info_counts_the_external_data_file(tmp_path: Path) -> None:
    image, data = tmp_path / "disk.qcow2", tmp_path / "disk.data"
    tapcore.create_image(f"qcow2:{image}", 8 << 20, options={"data_file": "disk.data"})
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * (4 << 20))
    used = sum(path.stat().st_blocks * 512 for path in (image, data))
    assert used > 4 << 20
    (told,) = image_info(f"qcow2:{image}")
    assert told.disk_size == used
    data.unlink()
    (told,) = image_info(f"qcow2:{image}")
    assert told.disk_size == image.stat().st_blocks * 512
    assert any("'disk.data' does not exist" in note for note in told.notes)

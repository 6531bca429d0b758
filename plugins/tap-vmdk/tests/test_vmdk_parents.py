"""Parents: recorded, checked by content id, changed, and what commit and rebase need."""

import json
import random
import re
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.interface.options import DiskId
from tapcore.interface.registry import default_registry
from tapcore.opening.chain import close_disk, open_disk

SIZE = 1 << 20


def make(folder: Path, rng: random.Random, name: str = "base.vmdk") -> tuple[Path, bytes]:
    image, content = folder / name, rng.randbytes(SIZE)
    tapcore.create_image(f"vmdk:{image}", SIZE)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
    return image, content


def child_of(base: Path, name: str = "child.vmdk", **options: str) -> Path:
    image = base.parent / name
    tapcore.create_image(f"vmdk:{image}", None, parent=f"vmdk:{base.name}", options=options)
    return image


def cids(image: Path) -> tuple[str, str]:
    text = image.read_bytes()
    found = [re.search(rb"^%s=(\w+)$" % key, text, re.M) for key in (b"CID", b"parentCID")]
    return tuple(match[1].decode() for match in found if match)  # type: ignore[return-value]


def call(image: Path, hook: str, *args: object, with_parents: bool = True) -> None:
    state = open_disk(DiskId(str(image), "vmdk"), default_registry(), with_parents=with_parents)
    try:
        getattr(state.disks.drv, hook)(state.disks, *args)
    finally:
        close_disk(state)


def test_qemu_sees_our_child(tmp_path: Path, rng: random.Random) -> None:
    base, content = make(tmp_path, rng)
    child = child_of(base)
    with tapcore.open(f"vmdk:{child}", readonly=False) as disk:
        disk.pwrite(1000, b"child" * 100)
    want = bytearray(content)
    want[1000:1500] = b"child" * 100
    raw = tmp_path / "raw"
    subprocess.run(
        [peer("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(child), str(raw)], check=True
    )
    assert raw.read_bytes() == want
    info = json.loads(
        subprocess.run(
            [peer("qemu-img"), "info", "--output=json", str(child)],
            capture_output=True,
            check=True,
        ).stdout
    )
    assert info["backing-filename"] == "base.vmdk"


def test_we_see_qemus_child(tmp_path: Path, rng: random.Random) -> None:
    _, content = make(tmp_path, rng)
    child = tmp_path / "child.vmdk"
    command = [peer("qemu-img"), "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "base.vmdk"]
    subprocess.run([*command, str(child)], check=True)
    subprocess.run(
        [peer("qemu-io"), "-f", "vmdk", "-c", "write -P 7 65000 3000", str(child)],
        check=True,
        capture_output=True,
    )
    want = bytearray(content)
    want[65000:68000] = b"\7" * 3000
    with tapcore.open(f"vmdk:{child}", readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == want


def test_the_content_id_changes_once_with_the_first_write_after_open(
    tmp_path: Path, rng: random.Random
) -> None:
    image, _ = make(tmp_path, rng)
    seen = {cids(image)[0]}
    for _ in range(2):
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            assert cids(image)[0] in seen  # only opened
            disk.pwrite(0, b"1")
            seen.add(cids(image)[0])
            disk.pwrite(512, b"2")
            disk.sync()
        assert cids(image)[0] in seen
    assert len(seen) == 3
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        disk.pread(0, length=512)
    assert cids(image)[0] in seen


def test_a_content_id_of_seven_digits_stays_as_long(tmp_path: Path, rng: random.Random) -> None:
    image, content = make(tmp_path, rng)
    raw = image.read_bytes()
    image.write_bytes(re.sub(rb"\nCID=\w+\n", b"\nCID=fde996b\n\n", raw))
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content[:512])
    assert re.fullmatch("[0-9a-f]{7}", cids(image)[0])
    assert cids(image)[0] != "fde996b"
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == content


def test_a_parent_that_was_changed_since_is_an_error_that_says_so(
    tmp_path: Path, rng: random.Random
) -> None:
    base, _ = make(tmp_path, rng)
    child = child_of(base)
    with tapcore.open(f"vmdk:{base}", readonly=False) as disk:
        disk.pwrite(0, b"changed")
    with pytest.raises(tapcore.ImageFormatError, match="parent was changed after it was made"):
        tapcore.open(f"vmdk:{child}", readonly=True)


def test_a_parent_of_another_format_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "base.img"
    raw.write_bytes(bytes(SIZE))
    with pytest.raises(tapcore.UsageError, match="must be a VMDK"):
        tapcore.create_image(f"vmdk:{tmp_path}/child.vmdk", None, parent="aio:base.img")
    assert not (tmp_path / "child.vmdk").exists()


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentFlat", "streamOptimized"])
def test_kinds_that_cannot_have_a_parent(tmp_path: Path, rng: random.Random, kind: str) -> None:
    base, _ = make(tmp_path, rng)
    with pytest.raises(tapcore.UsageError, match=f"a {kind} disk cannot have a parent"):
        child_of(base, subformat=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["base.vmdk"]


def test_a_split_child(tmp_path: Path, rng: random.Random) -> None:
    base, content = make(tmp_path, rng)
    child = child_of(base, subformat="twoGbMaxExtentSparse")
    with tapcore.open(f"vmdk:{child}", readonly=False) as disk:
        assert disk.pread(0, length=SIZE) == content
        disk.pwrite(70_000, b"x")
        assert (
            disk.pread(65536, length=65536) == content[65536:70_000] + b"x" + content[70_001:131072]
        )


def test_recording_another_parent(tmp_path: Path, rng: random.Random) -> None:
    base, _ = make(tmp_path, rng)
    other, content = make(tmp_path, rng, "other.vmdk")
    child = child_of(base)
    call(child, "td_set_parent", DiskId("other.vmdk", "vmdk"))
    with tapcore.open(f"vmdk:{child}", readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == content
    assert cids(child)[1] == cids(other)[0]
    call(child, "td_set_parent", None, with_parents=False)
    with tapcore.open(f"vmdk:{child}", readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == bytes(SIZE)
    assert cids(child)[1] == "ffffffff"
    with pytest.raises(tapcore.TapError, match="No such file"):
        call(child, "td_set_parent", DiskId("missing.vmdk", "vmdk"))


def test_a_child_is_emptied_and_follows_its_parents_content_id(
    tmp_path: Path, rng: random.Random
) -> None:
    base, content = make(tmp_path, rng)
    child = child_of(base)
    with tapcore.open(f"vmdk:{child}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(SIZE))
    length = child.stat().st_size
    call(child, "td_make_empty")
    assert child.stat().st_size < length - SIZE // 2
    with tapcore.open(f"vmdk:{child}", readonly=False) as disk:
        assert disk.pread(0, length=SIZE) == content
        disk.pwrite(65536, b"again")
    with tapcore.open(f"vmdk:{child}", readonly=True) as disk:
        assert disk.pread(65536, length=5) == b"again"
    subprocess.run([peer("qemu-img"), "check", str(child)], check=True, capture_output=True)


def test_a_child_that_does_not_say_where_its_parent_is(tmp_path: Path, rng: random.Random) -> None:
    base, _ = make(tmp_path, rng)
    child = child_of(base)
    raw = child.read_bytes()
    raw = raw.replace(b"ddb.uuid.parent=", b"ddb.uuid.nobody=")
    child.write_bytes(raw.replace(b'parentFileNameHint="base.vmdk"', b"#" * 30))
    with pytest.raises(tapcore.ImageFormatError, match="does not say where"):
        tapcore.open(f"vmdk:{child}", readonly=True)

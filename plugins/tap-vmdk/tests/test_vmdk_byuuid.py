"""Differencing disks of VirtualBox: a child knows its parent by a UUID, and does not say where."""

import random
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import tapcore
from tap_vmdk.change import parent as parents
from tap_vmdk.descriptor.ids import IMAGE_UUID, MODIFIED, PARENT_MODIFIED, ids_of, quoted
from tap_vmdk.descriptor.text import PARENT_UUID
from tap_vmdk.identity import parent_at
from tapcore.tools.commit import commit_image
from tapcore.tools.info import image_info
from tapcore.tools.rebase import rebase_image
from vmdkwriters import descriptor, hosted

GRAIN = 65536
SIZE = 4 * GRAIN
LINE = 'RW {} SPARSE "{}"'


def virtualbox(folder: Path, name: str, content: bytes, parent: Path | None = None) -> Path:
    """A disk as VirtualBox writes one."""
    above = ids_of(None if parent is None else parent_at(str(parent)).descriptor)
    keys = (IMAGE_UUID, PARENT_UUID, MODIFIED, PARENT_MODIFIED)
    values = (uuid4(), above.image, uuid4(), above.modified)
    entries = {key: quoted(value) for key, value in zip(keys, values, strict=True)}
    text = descriptor("monolithicSparse", [LINE.format(SIZE // 512, name)], **entries)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(hosted(content, text=text))
    return folder / name


def entry(image: Path, key: str) -> str | None:
    return parent_at(str(image)).descriptor.get(key)


def reads(image: Path, parents: str = "") -> bytes:
    allowed = (parents,) if parents else ()
    with tapcore.open(f"vmdk:{image}", readonly=True, parents=allowed) as disk:
        return disk.pread(0, length=disk.size)


@pytest.fixture
def chain(tmp_path: Path, rng: random.Random) -> tuple[Path, Path, bytes]:
    """A base, its child in the same folder, and what the child reads as."""
    content = rng.randbytes(SIZE)
    base = virtualbox(tmp_path, "base.vmdk", content)
    own = bytes(GRAIN) + rng.randbytes(GRAIN) + bytes(2 * GRAIN)
    child = virtualbox(tmp_path, "child.vmdk", own, base)
    return base, child, content[:GRAIN] + own[GRAIN : 2 * GRAIN] + content[2 * GRAIN :]


def test_the_parent_is_the_one_of_its_id_in_the_same_folder(
    chain: tuple[Path, Path, bytes],
) -> None:
    base, child, content = chain
    for name in ("other.vmdk", "another.vmdk"):
        virtualbox(base.parent, name, bytes(SIZE))
    (base.parent / "text").write_text(f"{IMAGE_UUID}={entry(base, IMAGE_UUID)}\n")
    assert reads(child) == content
    [facts] = image_info(f"vmdk:{child}")
    assert facts.parent == str(base)
    grand = virtualbox(base.parent, "grand.vmdk", bytes(SIZE), child)
    assert reads(grand) == content
    base.rename(base.parent / "renamed.vmdk")
    assert reads(grand) == content


def test_or_in_the_one_above_where_that_is_allowed(chain: tuple[Path, Path, bytes]) -> None:
    base, _, _ = chain
    child = virtualbox(base.parent / "Snapshots", "child.vmdk", bytes(SIZE), base)
    with pytest.raises(tapcore.ReferencePolicyError, match="--parents"):
        reads(child)
    assert reads(child, str(base.parent)) == reads(base)


def test_of_two_that_have_its_id_the_one_that_did_not_change(
    chain: tuple[Path, Path, bytes],
) -> None:
    base, child, content = chain
    copy = base.parent / "a copy.vmdk"
    shutil.copy(base, copy)
    with pytest.raises(tapcore.ImageFormatError, match=r"which of a copy\.vmdk and base\.vmdk"):
        reads(child)
    with tapcore.open(f"vmdk:{copy}", readonly=False) as disk:
        disk.pwrite(0, b"changed")
    assert reads(child) == content


def test_a_parent_that_was_written_is_refused(chain: tuple[Path, Path, bytes]) -> None:
    base, child, _ = chain
    with tapcore.open(f"vmdk:{base}", readonly=False) as disk:
        disk.pwrite(0, b"changed")
    with pytest.raises(tapcore.ImageFormatError, match="was changed after it was made"):
        reads(child)
    rebase_image(f"vmdk:{child}", "vmdk:base.vmdk", unsafe=True)
    assert reads(child)[:7] == b"changed"
    assert entry(child, PARENT_UUID) == entry(base, IMAGE_UUID)
    assert entry(child, PARENT_MODIFIED) == entry(base, MODIFIED)


def test_a_parent_that_is_not_there_is_told_of(chain: tuple[Path, Path, bytes]) -> None:
    base, child, _ = chain
    base.unlink()
    with pytest.raises(tapcore.ImageFormatError, match=r"none of its id lies in its folder"):
        reads(child)


def test_a_commit_tells_the_child_and_its_siblings_notice(chain: tuple[Path, Path, bytes]) -> None:
    base, child, content = chain
    sibling = virtualbox(base.parent, "sibling.vmdk", bytes(SIZE), base)
    commit_image(f"vmdk:{child}")
    assert reads(base) == reads(child) == content
    assert entry(child, PARENT_MODIFIED) == entry(base, MODIFIED)
    with pytest.raises(tapcore.ImageFormatError, match="was changed after it was made"):
        reads(sibling)


def test_another_disk_in_the_place_of_the_parent_is_refused(
    tmp_path: Path, rng: random.Random
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        tapcore.create_image(f"vmdk:{tmp_path}/{folder}/base.vmdk", SIZE)
    child = tmp_path / "one" / "child.vmdk"
    tapcore.create_image(f"vmdk:{child}", None, parent="vmdk:base.vmdk")
    shutil.move(tmp_path / "two" / "base.vmdk", tmp_path / "one" / "base.vmdk")
    with pytest.raises(tapcore.ImageFormatError, match="is another image"):
        reads(child)


def test_virtualbox_finds_the_parent_of_a_child_made_here(tmp_path: Path) -> None:
    tapcore.create_image(f"vmdk:{tmp_path}/base.vmdk", SIZE)
    child = tmp_path / "child.vmdk"
    tapcore.create_image(f"vmdk:{child}", None, parent="vmdk:base.vmdk")
    assert entry(child, PARENT_UUID) == entry(tmp_path / "base.vmdk", IMAGE_UUID)
    assert entry(child, PARENT_MODIFIED) == entry(tmp_path / "base.vmdk", MODIFIED)
    rebase_image(f"vmdk:{child}", "")
    assert entry(child, PARENT_UUID) == str(UUID(int=0))


def test_a_folder_of_many_large_descriptors_is_read_up_to_a_bound(
    chain: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, child, _ = chain
    monkeypatch.setattr(parents, "MOST_BYTES", 100)
    with pytest.raises(tapcore.ImageFormatError, match="does not say where"):
        reads(child)

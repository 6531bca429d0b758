"""Encrypted images, made and written by tapcore and QEMU in turn: the same content for both, and
nothing of it in the file."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapcore
from qcow2tools import (
    MIB,
    PASSPHRASE,
    SECRET,
    content_by_qemu,
    create,
    image_options,
    qemu_img,
    run,
    source_content,
)
from tapcore.tools.check import check_image

KEY = PASSPHRASE.encode()
SIZE = 2 * MIB + 5 * 512
MARK = b"this is a secret that lies all over the disk, and not in the file"


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is derived in no time, not in seconds, for each of many openings."""
    monkeypatch.setattr("tapcore.formats.luks.keys.iterations_for", lambda *_: 1000)


def by_qemu(image: Path, *commands: str) -> None:
    """`qemu-io` with the key."""
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", *SECRET, "--image-opts", *words, image_options(image))
    assert "failed" not in said, said


def check_by_qemu(image: Path) -> None:
    """`qemu-img check` finds nothing; it wants the key."""
    qemu_img("check", *SECRET, "--image-opts", image_options(image))


def made_by_qemu(folder: Path, **options: Any) -> Path:
    return create(folder / "disk.qcow2", SIZE, encrypt_format="luks", **options)


def made_by_us(folder: Path, **options: Any) -> Path:
    (folder / "key").write_bytes(KEY + b"\n")
    encryption = {"encrypt.format": "luks", "encrypt.key-file": str(folder / "key")}
    words = {name: str(value) for name, value in options.items()} | encryption
    image = folder / "disk.qcow2"
    tapcore.create_image(f"qcow2:{image}", SIZE, options=words)
    return image


Maker = Callable[..., Path]


@pytest.mark.parametrize(
    ("make", "options", "cache"),
    [
        (made_by_qemu, {}, "writeback"),
        (made_by_us, {}, "none"),
        (made_by_us, {"cluster_size": 512}, "writeback"),
        (made_by_us, {"extended_l2": "on", "cluster_size": 16384}, "writeback"),
    ],
)
def test_written_in_turn(
    make: Maker,
    options: dict[str, Any],
    cache: tapcore.CacheMode,
    tmp_path: Path,
    rng: random.Random,
) -> None:
    image = make(tmp_path, **options)
    model = bytearray(SIZE)
    for number in range(3):
        if number % 2:
            commands = []
            for _ in range(5):
                at, length = _place(rng)
                byte = rng.randint(1, 255)
                model[at : at + length] = bytes([byte]) * length
                commands.append(f"write -P {byte} {at} {length}")
            by_qemu(image, *commands)
        else:
            with tapcore.open(f"qcow2:{image}", keys=KEY, cache=cache, readonly=False) as disk:
                for _ in range(8):
                    at, length = _place(rng)
                    content = (MARK * (length // len(MARK) + 1))[:length]
                    disk.pwrite(at, content)
                    model[at : at + length] = content
                at, length = _place(rng)
                disk.zero(at, length=length)
                model[at : at + length] = bytes(length)
        check_by_qemu(image)
        assert content_by_qemu(image, encrypted=True) == model
        with tapcore.open(f"qcow2:{image}", keys=KEY, readonly=True, cache=cache) as disk:
            assert disk.pread(0, length=SIZE) == model
    assert MARK[:16] not in image.read_bytes()
    assert not check_image(f"qcow2:{image}").corruptions  # which needs no key


def _place(rng: random.Random) -> tuple[int, int]:
    at = rng.randrange(SIZE // 512) * 512
    return at, min(rng.choice((512, 4096, 65536, 200_192)), SIZE - at)


@pytest.mark.parametrize("make", [made_by_qemu, made_by_us])
def test_over_a_parent_in_the_clear(make: Maker, tmp_path: Path, rng: random.Random) -> None:
    """What a write copies from the parent is encrypted on its way."""
    content = source_content(rng, SIZE)
    (tmp_path / "parent.raw").write_bytes(content)
    image = make(tmp_path)
    qemu_img(
        "rebase",
        "-u",
        "-b",
        "parent.raw",
        "-F",
        "raw",
        *SECRET,
        "--image-opts",
        image_options(image),
    )
    model = bytearray(content)
    with tapcore.open(f"qcow2:{image}", keys=KEY, readonly=False) as disk:
        for _ in range(6):
            at = rng.randrange(SIZE - 600)
            disk.pwrite(at, MARK)
            model[at : at + len(MARK)] = MARK
        assert disk.pread(0, length=SIZE) == model
    assert content_by_qemu(image, encrypted=True) == model
    assert MARK[:16] not in image.read_bytes()


@pytest.mark.parametrize("make", [made_by_qemu, made_by_us])
def test_snapshots_of_an_encrypted_disk(make: Maker, tmp_path: Path) -> None:
    image = make(tmp_path)
    with tapcore.open(f"qcow2:{image}", keys=KEY, readonly=False) as disk:
        dd = disk.state.disks
        disk.pwrite(0, MARK * 2000)
        dd.drv.td_snapshot_create(dd, "s")
        disk.pwrite(0, b"n" * 65536)
    with tapcore.open(f"qcow2:{image}", keys=KEY, snapshot="s", readonly=True) as disk:
        assert disk.pread(0, length=len(MARK)) == MARK
    by_qemu(image, "read -P 110 0 64k")
    check_by_qemu(image)


def test_an_old_encryption_is_read_and_not_written(tmp_path: Path, rng: random.Random) -> None:
    """AES of version 2 is kept for what it has kept, and is not secure."""
    image = create(tmp_path / "disk.qcow2", SIZE, encrypt_format="aes")
    by_qemu(image, "write -P 7 0 1M", f"write -P 8 {SIZE - 512} 512")
    with tapcore.open(f"qcow2:{image}", keys=KEY, readonly=True) as disk:
        assert disk.pread(0, length=MIB + 1) == b"\7" * MIB + b"\0"
        assert disk.pread(SIZE - 512, length=512) == b"\b" * 512
    before = image.read_bytes()
    with pytest.raises(tapcore.TapError):
        tapcore.open(f"qcow2:{image}", keys=KEY, readonly=False)
    assert image.read_bytes() == before


def test_a_wrong_key_changes_nothing(tmp_path: Path) -> None:
    image = made_by_us(tmp_path)
    before = image.read_bytes()
    for key, readonly in ((None, False), (b"wrong", True), (KEY + b"\n", False)):
        with pytest.raises(tapcore.TapError, match=r"key|passphrase"):
            tapcore.open(f"qcow2:{image}", keys=key, readonly=readonly)
    assert image.read_bytes() == before


@pytest.mark.parametrize("extended", ["off", "on"])
def test_preallocated_it_reads_as_zeroes_and_takes_sparse_content(
    tmp_path: Path, rng: random.Random, extended: str
) -> None:
    image = made_by_us(tmp_path, preallocation="metadata", extended_l2=extended)
    with tapcore.open(f"qcow2:{image}", readonly=True, keys=KEY) as disk:
        assert disk.pread(0, length=SIZE) == bytes(SIZE)
    assert content_by_qemu(image, encrypted=True) == bytes(SIZE)
    (tmp_path / "sparse").write_bytes(rng.randbytes(MIB) + bytes(SIZE - MIB))
    tapcore.convert_image(
        f"aio:{tmp_path}/sparse",
        f"qcow2:{image}",
        force=True,
        options={
            "preallocation": "metadata",
            "extended_l2": extended,
            "encrypt.format": "luks",
            "encrypt.key-file": str(tmp_path / "key"),
        },
    )
    check_by_qemu(image)
    assert content_by_qemu(image, encrypted=True) == (tmp_path / "sparse").read_bytes()


def test_preallocated_it_needs_zero_clusters(tmp_path: Path) -> None:
    with pytest.raises(tapcore.UsageError, match=r"needs compat=1\.1"):
        made_by_us(tmp_path, preallocation="metadata", compat="0.10")


@pytest.mark.parametrize("make", [made_by_us, made_by_qemu])
def test_what_the_last_cluster_lacks_is_lost(tmp_path: Path, make: Maker) -> None:
    """It was written whole: zeroes in its place would be decrypted to noise."""
    image, size = make(tmp_path), 65536
    name, kept = f"qcow2:{image}", 2 * size - 1024
    for at in (0, size):  # the table of both lies between them
        with tapcore.open(name, keys=KEY, readonly=False) as disk:
            disk.pwrite(at, b"x" * size)
    os.truncate(image, image.stat().st_size - 1000)
    with tapcore.open(name, readonly=True, keys=KEY) as disk:
        assert disk.pread(0, length=kept) == b"x" * kept
        with pytest.raises(tapcore.LostContentError, match=f"read failed at {kept}: "):
            disk.pread(0, length=2 * size)
    with tapcore.open(name, readonly=True, keys=KEY, salvage=True) as disk:
        assert disk.pread(0, length=2 * size) == (b"x" * kept).ljust(2 * size, b"\0")
        assert disk.salvage is not None
        assert disk.salvage.lost == 1024
    before = image.read_bytes()
    with (
        tapcore.open(name, keys=KEY, readonly=False) as disk,
        pytest.raises(tapcore.TapError, match="is damaged, and not written; convert --salvage"),
    ):
        disk.pwrite(MIB, b"y" * size)
    assert image.read_bytes() == before

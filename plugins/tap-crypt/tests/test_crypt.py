"""Encrypted disks: as QEMU and cryptsetup make and read them, and as strangers make them."""

import contextlib
import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commandline import tapdisk

import tapcore
from diskmodel import Model
from lukstools import KEY, MIB, Luks2, by_hand, cryptsetup, decrypted, key_file, qemu, qemu_options
from peers import peer
from tapcore import NotSupportedError, TapError

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
CONTENT = random.Random(1).randbytes(2 * MIB)
QUICK = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


def opened(path: Path | str, **options: Any) -> tapcore.Disk:
    options = {"keys": KEY, "readonly": False, **options}
    return tapcore.open(f"crypt:aio:{path}", **options)


def read(path: Path | str, **options: Any) -> bytes:
    with opened(path, readonly=True, **options) as disk:
        return disk.pread(0, length=disk.size)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(TapError) as caught:
        read(path, **options)
    return str(caught.value)


# ---- with others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("cipher-alg=aes-128", "cipher-mode=cbc", "ivgen-alg=essiv", "ivgen-hash-alg=sha256"),
        ("cipher-alg=aes-192", "hash-alg=sha512"),
        ("cipher-alg=aes-128", "ivgen-alg=plain", "hash-alg=sha1"),
    ][: 1 if THOROUGH == 1 else None],
    ids=",".join,
)
def test_qemu_and_this_read_what_the_other_writes(options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    qemu(path, 4 * MIB, *options)
    image = qemu_options(path)
    io = [peer("qemu-io"), *image, "-c", "write -P 17 1M 300k"]
    subprocess.run(io, check=True, capture_output=True)
    with opened(path) as disk:
        assert disk.size == 4 * MIB
        assert disk.pread(MIB, length=300 << 10) == b"\x11" * (300 << 10)
        disk.pwrite(12345, CONTENT[:700_000])
        mine = disk.pread(0, length=disk.size)
    plain = tmp_path / "plain"
    subprocess.run([peer("qemu-img"), "convert", *image, "-O", "raw", plain], check=True)
    assert plain.read_bytes() == mine


@pytest.mark.parametrize(
    "options",
    [
        (*QUICK, "--sector-size", "4096"),
        ("--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4"),
        ("--pbkdf", "argon2i", "--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4"),
        QUICK,
        (*QUICK, "--sector-size", "2048", "--cipher", "aes-cbc-plain64", "--key-size", "256"),
        (*QUICK, "--cipher", "aes-cbc-essiv:sha256", "--key-size", "128", "--hash", "sha512"),
    ][: 2 if THOROUGH == 1 else None],
    ids=" ".join,
)
def test_cryptsetup_and_this_read_what_the_other_writes(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "disk.luks"
    cryptsetup(path, CONTENT, *options)
    assert read(path)[: len(CONTENT)] == CONTENT
    changed = bytearray(CONTENT)
    changed[1000:201_000] = b"x" * 200_000
    with opened(path) as disk:
        disk.pwrite(1000, b"x" * 200_000)
    assert decrypted(path)[: len(CONTENT)] == changed


def test_a_disk_of_version_1_of_cryptsetup_as_qemu_reads_it(tmp_path: Path) -> None:
    path, plain = tmp_path / "disk.luks", tmp_path / "plain"
    with open(path, "wb") as file:
        file.truncate(4 * MIB)
    options = ["--pbkdf-force-iterations", "1000", "--key-file", str(key_file(tmp_path))]
    make = [peer("cryptsetup"), "luksFormat", "-q", "--type", "luks1", *options, str(path)]
    subprocess.run(make, check=True, capture_output=True)
    with opened(path) as disk:
        disk.pwrite(0, CONTENT[:MIB])
    convert = [peer("qemu-img"), "convert", *qemu_options(path), "-O", "raw", str(plain)]
    subprocess.run(convert, check=True)
    assert plain.read_bytes()[:MIB] == CONTENT[:MIB]


def test_other_slots_and_key_files_with_a_newline(tmp_path: Path) -> None:
    path, second = tmp_path / "disk.luks", tmp_path / "second"
    cryptsetup(path, CONTENT, *QUICK)
    second.write_bytes(b"another one\n")
    add = [peer("cryptsetup"), "luksAddKey", "-q", "--key-file", str(key_file(tmp_path)), *QUICK]
    subprocess.run([*add, str(path), str(second)], check=True, capture_output=True)
    assert read(path)[:512] == CONTENT[:512]
    keys = tapcore.Keys.from_words((str(second),))
    assert read(path, keys=keys)[:512] == CONTENT[:512]
    assert "another passphrase" in refused(path, keys=b"no")
    assert "--key-file FILE names the file" in refused(path, keys=None)


# ---- alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("handle", ["aio", "qcow2"])
def test_a_model(handle: str, sector_size: int, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(Luks2(sector_size).disk(CONTENT))
    name = f"{handle}:{tmp_path / 'disk.img'}"
    tapcore.convert_image(f"aio:{raw}", name)
    rng = random.Random(4)
    with tapcore.open(f"crypt:{name}", keys=KEY, readonly=False) as disk:
        model = Model(disk, CONTENT)
        for n in range(60 * THOROUGH):
            kind = rng.choice(["write", "write", "read", "zero", "sync"])
            model.apply((kind, rng.randrange(2 * MIB), rng.choice([1, 512, 9000, MIB]), n))
        content = bytes(model.data)
    with tapcore.open(f"crypt:{name}", keys=KEY, readonly=True) as disk:
        assert disk.pread(0, length=disk.size) == content
    with tapcore.open(name, readonly=True) as below:  # the header as it was, the content hidden
        hidden = below.pread(0, length=below.size)
    assert hidden[: Luks2.DATA] == raw.read_bytes()[: Luks2.DATA]
    assert content[:4096] not in hidden


def test_in_a_partition_of_a_qcow2(tmp_path: Path) -> None:
    table = bytearray(MIB)
    table[446:462] = (
        bytes((0, 0, 0, 0, 0x83, 0, 0, 0))
        + (2048).to_bytes(4, "little")
        + ((6 * MIB // 512).to_bytes(4, "little"))
    )
    table[510:512] = b"\x55\xaa"
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(table) + by_hand(CONTENT).ljust(6 * MIB, b"\0"))
    tapcore.convert_image(f"aio:{raw}", tmp_path / "disk.qcow2")
    name = f"crypt:part:1:{tmp_path / 'disk.qcow2'}"
    with tapcore.open(name, keys=KEY, readonly=False) as disk:
        assert disk.pread(0, length=len(CONTENT)) == CONTENT
        disk.pwrite(4096, b"y" * 4096)
    with tapcore.open(name, keys=KEY, readonly=True) as disk:
        assert disk.pread(4096, length=4096) == b"y" * 4096


def test_nobody_is_warned_of_what_is_meant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.luks"
    path.write_bytes(by_hand(CONTENT))
    with tapcore.open(f"crypt:{path}", keys=KEY, readonly=True) as disk:
        assert disk.pread(0, length=512) == CONTENT[:512]
    assert not caplog.text


def test_the_commands(tmp_path: Path) -> None:
    path, key = tmp_path / "disk.luks", key_file(tmp_path)
    path.write_bytes(Luks2(4096).disk(CONTENT))
    out, err = tapdisk("info", "--json", f"crypt:{path}", status=0)  # without a passphrase
    said = json.loads(out)
    said = said[0] if isinstance(said, list) else said
    assert not err
    assert said["format"]["version"] == 2
    assert said["format"]["cipher"] == "aes-xts-plain64"
    plain = tmp_path / "plain.img"
    tapdisk("convert", "-q", f"crypt:{path}", plain, "--key-file", key, status=0)
    assert plain.read_bytes() == CONTENT
    _, err = tapdisk("convert", "-q", f"crypt:{path}", plain, "--force", status=1)
    assert "is encrypted: --key-file FILE" in err
    _, err = tapdisk("convert", "-q", f"crypt:{path}", path, "--key-file", key, "--force", status=1)
    assert "is the source, or one of its parents" in err or "cannot tell the format" in err


# ---- by strangers ----------------------------------------------------------------------------


def test_either_of_two_headers_will_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "disk.luks"
    for at in (600, 5000, 10):
        for copy in (0, Luks2.SIZE):
            disk = Luks2().disk(CONTENT)
            disk[copy + at] ^= 1
            path.write_bytes(disk)
            caplog.clear()
            if at == 10 and copy == 0:
                disk[8] ^= 1
            assert read(path) == CONTENT
            assert "one of its two LUKS headers is damaged" in caplog.text
    disk = Luks2().disk(CONTENT)
    disk[600] ^= 1
    disk[Luks2.SIZE + 600] ^= 1
    path.write_bytes(disk)
    assert "checksum is wrong" in refused(path)


def test_the_newer_header_counts(tmp_path: Path) -> None:
    header = Luks2()
    old = header.disk(CONTENT)
    header.number = (3, 4)
    header.segment["offset"] = str(header.DATA + 512)
    new = header.disk(CONTENT)
    old[header.SIZE : 2 * header.SIZE] = new[header.SIZE : 2 * header.SIZE]
    path = tmp_path / "disk.luks"
    path.write_bytes(old)
    with opened(path, readonly=True) as disk:
        assert disk.size == len(CONTENT) - 512


WRONG: list[tuple[str, Any, str]] = [
    ("said.segments", {}, "0 LUKS segments"),
    ("said.digests", {}, "digests that are not supported"),
    ("said.keyslots", {}, "no LUKS key slot in use"),
    ("said.keyslots", 5, "says nothing sensible"),
    ("said.config", {"requirements": {"mandatory": ["online-reencrypt"]}}, "needs online-reen"),
    ("segment.type", "linear", "a LUKS segment of the type linear"),
    ("segment.offset", "-512", "impossible values"),
    ("segment.offset", "0", "is not behind its LUKS header"),
    ("segment.offset", str(1 << 60), "is not behind its LUKS header"),
    ("segment.size", str(1 << 60), "and its LUKS header speaks of"),
    ("segment.sector_size", 100, "impossible values"),
    ("segment.encryption", "serpent-xts-plain64", "is not supported"),
    ("segment.encryption", "aes-xts-random", "are not supported"),
    ("slot.key_size", 1 << 30, "impossible values"),
    ("slot.af", {"type": "luks1", "stripes": 1 << 40, "hash": "sha256"}, "impossible values"),
    ("slot.af", {"type": "luks1", "stripes": 4000, "hash": "crc"}, "hash crc"),
    ("slot.area", {"type": "raw", "offset": str(1 << 60), "key_size": 64}, "says nothing sensible"),
    ("kdf.iterations", 1 << 40, "take too long to try"),
    ("kdf.iterations", 0, "impossible values"),
    ("kdf.salt", "***", "says nothing sensible"),
    ("kdf.type", "scrypt", "says nothing sensible"),
    (
        "slot.kdf",
        {"type": "argon2id", "salt": "AAAA", "time": 4, "memory": 1 << 30, "cpus": 4},
        "asks for 1073741824 KiB",
    ),
    (
        "slot.kdf",
        {"type": "argon2id", "salt": "AAAA", "time": 1 << 30, "memory": 1 << 20, "cpus": 4},
        "take too long to try",
    ),
    (
        "slot.kdf",
        {"type": "argon2id", "salt": "AAAA", "time": 4, "memory": 1 << 20, "cpus": 1 << 20},
        "by 1048576 threads",
    ),
]


@pytest.mark.parametrize(("where", "value", "said"), WRONG, ids=lambda v: str(v)[:40])
def test_a_header_that_is_not_to_be_trusted(
    where: str, value: object, said: str, tmp_path: Path
) -> None:
    header = Luks2()
    part, _, name = where.partition(".")
    getattr(header, part)[name] = value
    path = tmp_path / "disk.luks"
    disk = header.disk(CONTENT) if where != "segment.sector_size" else _with(header)
    path.write_bytes(disk)
    assert said in refused(path)


def _with(header: Luks2) -> bytearray:
    wrong, header.segment["sector_size"] = header.segment["sector_size"], 512
    disk = header.disk(CONTENT)
    header.segment["sector_size"] = wrong
    disk[: header.SIZE] = header._copy(False)
    disk[header.SIZE : 2 * header.SIZE] = header._copy(True)
    return disk


def test_what_is_no_header_at_all(tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    for content in (b"", bytes(MIB), b"LUKS\xba\xbe\0\1" + bytes(5000), b"LUKS\xba\xbe\0\2"):
        path.write_bytes(content.ljust(512 * (len(content) > 0), b"\0"))
        assert refused(path)
    path.write_bytes(by_hand(CONTENT)[:5000])
    assert refused(path)
    path.write_bytes(b"LUKS\xba\xbe\0\3" + bytes(5000))
    with pytest.raises(NotSupportedError, match="version 3"):
        read(path)


@pytest.mark.parametrize("version", [1, 2])
def test_damaged_headers_do_no_harm(version: int, tmp_path: Path) -> None:
    """Any bytes changed: opened, or refused in one line; never another way out."""
    rng, path = random.Random(version), tmp_path / "disk.luks"
    disk = bytearray(by_hand(CONTENT)) if version == 1 else Luks2().disk(CONTENT)
    head = 600 if version == 1 else 2 * Luks2.SIZE
    path.write_bytes(disk)
    with open(path, "r+b", buffering=0) as file:
        for _ in range(25 * THOROUGH):
            places = [rng.randrange(6, head) for _ in range(rng.randrange(1, 4))]
            for at in places:
                os.pwrite(file.fileno(), rng.randbytes(1), at)
            with contextlib.suppress(TapError):
                assert read(path) == CONTENT
            for at in places:
                os.pwrite(file.fileno(), disk[at : at + 1], at)

"""Sectors are encrypted as the standards say, as QEMU does it, and the same whatever the way."""

import random
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5, sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.modes import ECB

import tapcore
from peers import peer
from tapcore.formats import cipher as sectorcipher
from tapcore.formats.cipher import SectorCipher, legacy_aes

KINDS = [  # bytes of the key, mode, IVs
    (32, "xts", "plain64"),
    (48, "xts", "plain64"),
    (64, "xts", "plain64"),
    (64, "xts", "plain"),
    (64, "xts", "essiv:sha256"),
    (16, "cbc", "plain64"),
    (24, "cbc", "plain"),
    (32, "cbc", "essiv:sha256"),
    (16, "cbc", "essiv:md5"),
]
every_kind = pytest.mark.parametrize(("key_size", "mode", "iv"), KINDS)


def block(key: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), ECB()).encryptor().update(data)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def reference(key: bytes, mode: str, iv: str, sector: int, content: bytes) -> bytes:
    """One sector encrypted block by block, as the standards' text has it."""
    start = struct.pack("<QQ", sector & 0xFFFF_FFFF if iv == "plain" else sector, 0)
    if iv == "essiv:sha256":
        start = block(sha256(key).digest(), start)
    if iv == "essiv:md5":
        start = block(md5(key).digest(), start)
    blocks = [content[i : i + 16] for i in range(0, 512, 16)]
    result = []
    if mode == "cbc":
        for plain in blocks:
            start = block(key, xor(plain, start))
            result.append(start)
        return b"".join(result)
    half = len(key) // 2
    tweak = int.from_bytes(block(key[half:], start), "little")
    for plain in blocks:
        mask = tweak.to_bytes(16, "little")
        result.append(xor(block(key[:half], xor(plain, mask)), mask))
        tweak <<= 1
        if tweak >> 128:
            tweak ^= (1 << 128) | 0x87
    return b"".join(result)


def test_xts_gives_the_vector_of_ieee_1619() -> None:
    """Vector 4 of the standard's annex: its first and last blocks."""
    key = bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795")
    encrypted = SectorCipher(key).encrypt(0, bytes(range(256)) * 2)
    assert encrypted[:16].hex() == "27a7479befa1d476489f308cd4cfa6e2"
    assert encrypted[-16:].hex() == "0a282df920147beabe421ee5319d0568"


@every_kind
@pytest.mark.parametrize("first", [0, 7, (1 << 32) - 2, 1 << 40])
def test_sectors_are_encrypted_block_by_block_as_the_standards_say(
    key_size: int, mode: str, iv: str, first: int, rng: random.Random
) -> None:
    key, content = rng.randbytes(key_size), rng.randbytes(5 * 512)
    cipher = SectorCipher(key, mode=mode, iv=iv)
    expected = b"".join(
        reference(key, mode, iv, first + n, content[512 * n : 512 * n + 512]) for n in range(5)
    )
    assert cipher.encrypt(first, content) == expected
    assert cipher.decrypt(first, expected) == content


@every_kind
def test_many_sectors_are_each_one_alone(
    key_size: int, mode: str, iv: str, rng: random.Random
) -> None:
    cipher = SectorCipher(rng.randbytes(key_size), mode=mode, iv=iv)
    content = rng.randbytes(300 * 512)
    encrypted = cipher.encrypt(1000, content)
    assert cipher.decrypt(1000, encrypted) == content
    for _ in range(20):
        n = rng.randrange(300)
        count = rng.randrange(1, 4)
        part = slice(512 * n, 512 * min(n + count, 300))
        assert cipher.encrypt(1000 + n, content[part]) == encrypted[part]
        assert cipher.decrypt(1000 + n, encrypted[part]) == content[part]


@every_kind
def test_nothing_is_nothing(key_size: int, mode: str, iv: str, rng: random.Random) -> None:
    cipher = SectorCipher(rng.randbytes(key_size), mode=mode, iv=iv)
    assert cipher.encrypt(3, b"") == cipher.decrypt(3, b"") == b""


@every_kind
@pytest.mark.parametrize("wrap", [bytearray, memoryview])
def test_any_buffer_will_do_and_is_left_alone(
    key_size: int,
    mode: str,
    iv: str,
    wrap: type[bytearray] | type[memoryview],
    rng: random.Random,
) -> None:
    cipher = SectorCipher(rng.randbytes(key_size), mode=mode, iv=iv)
    content = rng.randbytes(8 * 512)
    encrypted = cipher.encrypt(9, content)
    given = wrap(bytearray(content))
    assert cipher.encrypt(9, given) == encrypted
    assert given == content
    given = wrap(bytearray(encrypted))
    assert cipher.decrypt(9, given) == content
    assert given == encrypted


@pytest.mark.parametrize("length", [1, 511, 513, 1000])
def test_only_whole_sectors_are_taken(length: int, rng: random.Random) -> None:
    cipher = SectorCipher(rng.randbytes(64))
    for work in (cipher.encrypt, cipher.decrypt):
        with pytest.raises(ValueError, match="not whole sectors"):
            work(0, bytes(length))


@every_kind
def test_a_library_that_copies_the_iv_changes_nothing(
    key_size: int, mode: str, iv: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, content = rng.randbytes(key_size), rng.randbytes(6 * 512)
    expected = SectorCipher(key, mode=mode, iv=iv).encrypt(77, content)
    monkeypatch.setattr(sectorcipher, "_iv_is_read_late", lambda mode: False)
    cipher = SectorCipher(key, mode=mode, iv=iv)
    assert cipher.encrypt(77, content) == expected
    assert cipher.decrypt(77, expected) == content


def test_threads_share_a_cipher(rng: random.Random) -> None:
    cipher = SectorCipher(rng.randbytes(64))
    pieces = [(rng.randrange(1 << 40), rng.randbytes(16 * 512)) for _ in range(64)]
    expected = [cipher.encrypt(first, content) for first, content in pieces]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda piece: cipher.encrypt(*piece), pieces)) == expected
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("cipher", "mode", "iv"),
    [
        ("twofish", "xts", "plain64"),
        ("aes", "ctr", "plain64"),
        ("aes", "xts", "benbi"),
        ("aes", "xts", "essiv"),
        ("aes", "xts", "essiv:sha1"),  # no key of AES has the length of this hash
        ("aes", "xts", "essiv:nonsense"),
    ],
)
def test_what_is_not_supported_is_said(cipher: str, mode: str, iv: str) -> None:
    with pytest.raises(tapcore.NotSupportedError, match="not supported"):
        SectorCipher(bytes(range(32)), cipher=cipher, mode=mode, iv=iv)


@pytest.mark.parametrize(("size", "mode"), [(16, "xts"), (33, "xts"), (64, "cbc"), (0, "cbc")])
def test_a_key_has_a_length_of_the_algorithm(size: int, mode: str) -> None:
    with pytest.raises(tapcore.UsageError, match=f"aes-{mode} has no keys of {size * 8} bits"):
        SectorCipher(bytes(range(size)), mode=mode)


def test_the_halves_of_an_xts_key_differ() -> None:
    with pytest.raises(tapcore.UsageError, match="halves"):
        SectorCipher(bytes(64))


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(tapcore.NotSupportedError, match="pip install cryptography"):
        SectorCipher(bytes(range(64)))


def test_the_package_is_loaded_only_when_it_is_needed() -> None:
    code = "import sys, tapcore.formats.cipher; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "passphrase", ["short", "just sixteen ch.", "more than sixteen characters"]
)
def test_the_first_encryption_of_qcow_is_qemus(
    passphrase: str, tmp_path: Path, rng: random.Random
) -> None:
    """QEMU writes into a qcow image; its cluster is decrypted here."""
    secret, image = tmp_path / "secret", tmp_path / "disk.qcow"
    content_file = tmp_path / "content"
    content = rng.randbytes(4096)
    secret.write_text(passphrase)
    content_file.write_bytes(content)
    key = f"secret,id=key,file={secret}"
    options = "encrypt.format=aes,encrypt.key-secret=key"
    command = [peer("qemu-img"), "create", "-q", "-f", "qcow", "--object", key, "-o", options]
    subprocess.run([*command, image, "1M"], check=True, capture_output=True)
    opened = f"driver=qcow,file.filename={image},{options}"
    command = [
        peer("qemu-io"),
        "--object",
        key,
        "--image-opts",
        "-c",
        f"write -s {content_file} 64k 4k",
    ]
    subprocess.run([*command, opened], check=True, capture_output=True)

    data = image.read_bytes()
    (l1_table,) = struct.unpack_from(">Q", data, 40)
    (l2_table,) = struct.unpack_from(">Q", data, l1_table)
    (cluster,) = struct.unpack_from(">Q", data, l2_table + (64 << 10) // 4096 * 8)
    stored = data[cluster : cluster + 4096]
    assert stored != content
    cipher = legacy_aes(passphrase.encode())
    assert cipher.decrypt((64 << 10) // 512, stored) == content
    assert cipher.encrypt((64 << 10) // 512, content) == stored

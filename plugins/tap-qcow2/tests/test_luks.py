"""LUKS headers: QEMU opens ours, we open QEMU's, and a header from a stranger does no harm."""

import contextlib
import random
import struct
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from cputime import LENIENT, CpuTime

import tapcore
from qcow2tools import MIB, PASSPHRASE, SECRET, create, image_options, qemu_img, run
from tapcore.formats.luks import keys, keyslots
from tapcore.formats.luks.header import HEADER_SIZE, LuksHeader, LuksInfo
from tapcore.formats.luks.keyslots import create_luks, most_rounds, open_luks

KEY = PASSPHRASE.encode()
CLUSTER = 64 << 10
EXTENSION = 0x0537BE77  # qcow2.rst: full disk encryption header pointer

KINDS = [  # cipher, mode, IVs, hash
    ("aes-256", "xts", "plain64", "sha256"),
    ("aes-128", "xts", "plain", "sha1"),
    ("aes-192", "xts", "plain64", "sha512"),
    ("aes-256", "cbc", "essiv:sha256", "sha256"),
    ("aes-128", "cbc", "plain64", "sha384"),
]
every_kind = pytest.mark.parametrize(("cipher", "mode", "iv", "hash_name"), KINDS)


# ---- a qcow2 image by hand ---------------------------------------------------------------------


def region_pointer(content: bytes | bytearray) -> int:
    """Where in the file the header extension with the region's offset and length begins."""
    (at,) = struct.unpack_from(">I", content, 100)
    for _ in range(20):
        kind, length = struct.unpack_from(">II", content, at)
        if kind == EXTENSION:
            return int(at) + 8
        at += 8 + -(-length // 8) * 8
    raise AssertionError("the image has no such header extension")


def region_of(content: bytes) -> bytes:
    offset, length = struct.unpack_from(">QQ", content, region_pointer(content))
    return content[offset : offset + length]


def first_cluster(content: bytes) -> int:
    """Offset of the disk's first cluster."""
    (l1_table,) = struct.unpack_from(">Q", content, 40)
    (l2_table,) = struct.unpack_from(">Q", content, l1_table)
    (offset,) = struct.unpack_from(">Q", content, l2_table & ((1 << 56) - 1))
    return int(offset) & ((1 << 56) - 1)


def qemu_writes(image: Path, source: Path, content: bytes) -> None:
    source.write_bytes(content)
    command = f"write -s {source} 0 {len(content)}"
    run("qemu-io", *SECRET, "--image-opts", "-c", command, image_options(image))


@pytest.fixture(scope="module")
def by_qemu(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty encrypted image that QEMU made with its defaults."""
    image = create(tmp_path_factory.mktemp("luks") / "disk.qcow2", MIB, encrypt_format="luks")
    return image.read_bytes()


@pytest.fixture(scope="module")
def ours() -> bytes:
    """A region of the smallest kind, with the first slot in use."""
    return create_luks(KEY, cipher="aes-128", mode="cbc", seconds=0)[0]


def changed(region: bytes, **fields: Any) -> bytes:
    header = attrs.evolve(LuksHeader.parse(region), **fields)
    return header.serialize() + region[HEADER_SIZE:]


def with_slot(region: bytes, n: int, **fields: Any) -> bytes:
    slots = list(LuksHeader.parse(region).slots)
    slots[n] = attrs.evolve(slots[n], **fields)
    return changed(region, slots=tuple(slots))


# ---- with QEMU ---------------------------------------------------------------------------------


def test_what_qemu_encrypts_by_default_is_decrypted(
    by_qemu: bytes, tmp_path: Path, rng: random.Random
) -> None:
    image = tmp_path / "disk.qcow2"
    image.write_bytes(by_qemu)
    content = rng.randbytes(CLUSTER)
    qemu_writes(image, tmp_path / "content", content)
    data = image.read_bytes()
    cipher = open_luks(region_of(data), KEY)
    offset = first_cluster(data)
    stored = data[offset : offset + CLUSTER]
    assert stored != content
    assert cipher.decrypt(offset // 512, stored) == content
    assert cipher.encrypt(offset // 512, content) == stored


def test_what_qemu_encrypts_with_other_choices_is_decrypted(
    tmp_path: Path, rng: random.Random
) -> None:
    """A cipher that needs a way of its own here, and a second passphrase in another slot."""
    choices = {"cipher-alg": "aes-192", "cipher-mode": "xts", "ivgen-alg": "plain"}
    choices["hash-alg"] = "sha512"
    options = {f"encrypt.{name}": value for name, value in choices.items()}
    image = create(tmp_path / "disk.qcow2", MIB, encrypt_format="luks", **options)
    more = ("--object", "secret,id=more,data=a second one")
    wanted = "encrypt.state=active,encrypt.new-secret=more,encrypt.keyslot=6,encrypt.iter-time=10"
    qemu_img("amend", *SECRET, *more, "--image-opts", image_options(image), "-o", wanted)
    content = rng.randbytes(CLUSTER)
    qemu_writes(image, tmp_path / "content", content)
    data = image.read_bytes()
    offset = first_cluster(data)
    stored = data[offset : offset + CLUSTER]
    for passphrase in (KEY, b"a second one"):
        cipher = open_luks(region_of(data), passphrase)
        assert cipher.decrypt(offset // 512, stored) == content
    info = LuksInfo.of(region_of(data))
    assert (info.cipher, info.mode, info.iv) == ("aes-192", "xts", "plain")
    assert (info.hash, info.active_slots) == ("sha512", (0, 6))


@every_kind
def test_qemu_opens_the_header_that_is_made_here(
    cipher: str,
    mode: str,
    iv: str,
    hash_name: str,
    by_qemu: bytes,
    tmp_path: Path,
    rng: random.Random,
) -> None:
    region, sectors = create_luks(
        KEY, cipher=cipher, mode=mode, iv=iv, hash_name=hash_name, seconds=0
    )
    data = bytearray(by_qemu)
    pointer = region_pointer(data)
    offset, room = struct.unpack_from(">QQ", data, pointer)
    assert len(region) <= room
    data[offset : offset + len(region)] = region
    struct.pack_into(">Q", data, pointer + 8, len(region))
    image = tmp_path / "disk.qcow2"
    image.write_bytes(data)
    content = rng.randbytes(CLUSTER)
    qemu_writes(image, tmp_path / "content", content)

    written = image.read_bytes()
    offset = first_cluster(written)
    assert sectors.decrypt(offset // 512, written[offset : offset + CLUSTER]) == content
    # And the other way: what is encrypted here, QEMU reads.
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(sectors.encrypt(offset // 512, bytes([0xA5]) * CLUSTER))
    read = f"read -P 0xa5 0 {CLUSTER}"
    said = run("qemu-io", *SECRET, "--image-opts", "-c", read, image_options(image))
    assert "verification failed" not in said.lower()


def test_qemu_says_the_same_of_a_header_made_here(by_qemu: bytes, tmp_path: Path) -> None:
    region, _ = create_luks(KEY, seconds=0)
    data = bytearray(by_qemu)
    offset, room = struct.unpack_from(">QQ", data, region_pointer(data))
    assert len(region) == room  # the defaults are QEMU's, so the layout is
    data[offset : offset + room] = region
    image = tmp_path / "disk.qcow2"
    image.write_bytes(data)
    said = qemu_img("info", "-f", "qcow2", image)
    info = LuksInfo.of(region)
    for line in (
        f"uuid: {info.uuid}",
        "cipher alg: aes-256",
        "cipher mode: xts",
        "ivgen alg: plain64",
        "hash alg: sha256",
        f"payload offset: {info.payload_offset}",
        "iters: 1000",
    ):
        assert line in said
    assert said.count("active: true") == 1
    assert said.count("active: false") == 7


# ---- by itself ---------------------------------------------------------------------------------


@every_kind
def test_what_is_made_opens(
    cipher: str, mode: str, iv: str, hash_name: str, rng: random.Random
) -> None:
    region, sectors = create_luks(
        KEY, cipher=cipher, mode=mode, iv=iv, hash_name=hash_name, seconds=0
    )
    content = rng.randbytes(4096)
    assert open_luks(region, KEY).decrypt(70, sectors.encrypt(70, content)) == content
    assert open_luks(memoryview(region), KEY).encrypt(70, content) == sectors.encrypt(70, content)
    info = LuksInfo.of(region[:HEADER_SIZE])
    assert (info.cipher, info.mode, info.iv, info.hash) == (cipher, mode, iv, hash_name)
    assert (info.active_slots, info.payload_offset) == ((0,), len(region))


def test_two_images_have_nothing_in_common() -> None:
    (one, first), (two, second) = (
        create_luks(KEY, cipher="aes-128", mode="cbc", seconds=0) for _ in range(2)
    )
    assert LuksInfo.of(one).uuid != LuksInfo.of(two).uuid
    assert first.encrypt(0, bytes(512)) != second.encrypt(0, bytes(512))
    assert one[4096:5000] != two[4096:5000]


@pytest.mark.parametrize("n", range(8))
def test_every_slot_is_tried(n: int, ours: bytes) -> None:
    slots = list(LuksHeader.parse(ours).slots)
    slots[0], slots[n] = slots[n], slots[0]
    region = changed(ours, slots=tuple(slots))
    assert LuksInfo.of(region).active_slots == (n,)
    content = bytes(range(256)) * 2
    assert open_luks(region, KEY).encrypt(1, content) == open_luks(ours, KEY).encrypt(1, content)


def test_slots_of_other_passphrases_are_passed_over(ours: bytes) -> None:
    region = ours
    for n in range(1, 8):
        region = with_slot(region, n, in_use=True, iterations=1000)
    slots = LuksHeader.parse(region).slots
    region = changed(region, slots=slots[::-1])
    content = bytes(512)
    assert open_luks(region, KEY).encrypt(1, content) == open_luks(ours, KEY).encrypt(1, content)


@pytest.mark.parametrize("passphrase", [b"wrong", b"", KEY + b"\n", KEY[:-1], bytes(1000)])
def test_a_wrong_passphrase_is_an_error_that_says_so(passphrase: bytes, ours: bytes) -> None:
    with pytest.raises(tapcore.UsageError, match="another passphrase"):
        open_luks(ours, passphrase)


def test_without_a_passphrase_the_error_says_how_to_give_one(ours: bytes) -> None:
    with pytest.raises(tapcore.UsageError, match="--key-file FILE"):
        open_luks(ours, None)


def test_damaged_key_material_does_not_open(ours: bytes, rng: random.Random) -> None:
    damaged = bytearray(ours)
    damaged[4096 + rng.randrange(16 * 4000)] ^= 1 << rng.randrange(8)
    with pytest.raises(tapcore.UsageError, match="another passphrase"):
        open_luks(bytes(damaged), KEY)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cipher": "aes-512"}, tapcore.UsageError, "aes-512 is no cipher: there are aes-128"),
        ({"mode": "ecb"}, tapcore.UsageError, "ecb is no mode: there are xts, cbc"),
        ({"hash_name": "crc32"}, tapcore.UsageError, "crc32 is no hash: there are sha1"),
        ({"iv": "random"}, tapcore.NotSupportedError, "random are not supported"),
        ({"cipher": "aes-192", "mode": "cbc"}, tapcore.NotSupportedError, "whole sectors"),
    ],
)
def test_what_cannot_be_made_is_said(
    options: dict[str, Any], error: type[tapcore.TapError], said: str
) -> None:
    with pytest.raises(error, match=said):
        create_luks(KEY, seconds=0, **options)


def test_an_empty_passphrase_protects_nothing() -> None:
    with pytest.raises(tapcore.UsageError, match="empty"):
        create_luks(b"", seconds=0)


# ---- from a stranger ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 6, 208, HEADER_SIZE - 1])
def test_a_header_that_is_cut_short_is_refused(length: int, ours: bytes) -> None:
    for read in (LuksHeader.parse, LuksInfo.of):
        with pytest.raises(tapcore.ImageFormatError, match="cut short"):
            read(ours[:length])


@pytest.mark.parametrize(
    ("offset", "content", "error", "said"),
    [
        (0, b"LUSK", tapcore.ImageFormatError, "no LUKS header"),
        (6, b"\0\2", tapcore.NotSupportedError, "version 2"),
        (8, b"serpent\0", tapcore.NotSupportedError, "serpent-cbc is not supported"),
        (8, b"\xff\xfe", tapcore.ImageFormatError, "damaged text"),
        (40, b"ecb\0", tapcore.NotSupportedError, "aes-ecb is not supported"),
        (40, b"cbc-lmk\0", tapcore.NotSupportedError, "lmk are not supported"),
        (72, b"whirlpool\0", tapcore.NotSupportedError, "whirlpool"),
        (72, b"shake_128\0", tapcore.NotSupportedError, "shake_128"),
        (108, struct.pack(">I", 0), tapcore.ImageFormatError, "key of 0 bytes"),
        (108, struct.pack(">I", 17), tapcore.ImageFormatError, "no keys of 136 bits"),
        (108, b"\xff\xff\xff\xff", tapcore.ImageFormatError, "key of 4294967295 bytes"),
        (164, bytes(4), tapcore.ImageFormatError, "impossible values"),
        (164, b"\xff\xff\xff\xff", tapcore.ImageFormatError, "takes too long"),
        (208, b"\0\0\0\1", tapcore.ImageFormatError, "neither in use nor free"),
        (208, struct.pack(">I", 0xDEAD), tapcore.ImageFormatError, "nothing can open it"),
        (212, bytes(4), tapcore.ImageFormatError, "impossible values"),
        (212, b"\xff\xff\xff\xff", tapcore.ImageFormatError, "takes too long"),
        (248, bytes(4), tapcore.ImageFormatError, "outside of the header"),
        (248, b"\xff\xff\xff\xff", tapcore.ImageFormatError, "outside of the header"),
        (252, struct.pack(">I", 1), tapcore.ImageFormatError, "impossible values"),
    ],
)
def test_what_is_wrong_with_a_header_is_said_at_once(
    offset: int, content: bytes, error: type[tapcore.TapError], said: str, ours: bytes
) -> None:
    region = bytearray(ours)
    region[offset : offset + len(content)] = content
    spent = CpuTime()
    with pytest.raises(error, match=said):
        open_luks(bytes(region), KEY)
    assert spent.is_about(5)


def test_key_material_must_lie_in_the_region(ours: bytes) -> None:
    end = 4096 + LuksHeader.parse(ours).material_size
    open_luks(ours[:end], KEY)
    with pytest.raises(tapcore.ImageFormatError, match="outside of the header"):
        open_luks(ours[: end - 1], KEY)


def test_many_slots_together_do_not_take_too_long_either(
    ours: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = ours
    for n in range(1, 8):
        region = with_slot(region, n, in_use=True, iterations=4000)
    last = changed(region, slots=LuksHeader.parse(region).slots[::-1])
    open_luks(last, KEY)
    monkeypatch.setattr(keyslots, "MAX_ROUNDS", 20_000)
    open_luks(region, KEY)  # the first slot opens: the others are not tried
    with pytest.raises(tapcore.ImageFormatError, match="takes too long"):
        open_luks(last, KEY)


def test_a_round_of_a_hash_that_costs_more_is_asked_for_less_often() -> None:
    """Measured: 2.3 million rounds a second of SHA-1 and SHA-256, 0.9 million of SHA-512."""
    assert most_rounds("sha1") == most_rounds("sha256") < 11 * 2_300_000
    assert most_rounds("sha512") < 11.5 * 900_000


def test_two_slots_as_a_fast_machine_makes_them_can_be_tried() -> None:
    """Two of two seconds each: five million iterations of SHA-256, two digests for each key."""
    assert 2 * keys.rounds("sha256", 5_000_000, 64) <= most_rounds("sha256")
    assert 2 * keys.rounds("sha512", 3_000_000, 64) <= most_rounds("sha512")


def test_no_damaged_header_does_worse_than_an_error(
    ours: bytes, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyslots, "MAX_ROUNDS", 20_000)
    for _ in range(200):
        region = bytearray(ours)
        for _ in range(rng.randrange(1, 4)):
            region[rng.randrange(256)] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        with contextlib.suppress(tapcore.TapError):
            open_luks(bytes(region), KEY)


# ---- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("size", [16, 20, 32, 33, 64])
def test_a_key_comes_back_from_its_stripes(size: int, hash_name: str, rng: random.Random) -> None:
    key = rng.randbytes(size)
    area = keys.split(key, 50, hash_name)
    assert len(area) == 50 * size
    assert keys.merge(area, 50, hash_name) == key
    damaged = bytearray(area)
    damaged[rng.randrange(len(damaged))] ^= 1
    assert keys.merge(bytes(damaged), 50, hash_name) != key


def test_deriving_a_key_takes_about_the_time_that_is_wanted() -> None:
    assert keys.iterations_for("sha256", 64, 0) == keys.MIN_ITERATIONS
    iterations = keys.iterations_for("sha256", 64, 0.2)
    start = time.thread_time()
    keys.derive("sha256", b"secret", bytes(32), iterations, 64)
    assert 0.05 < time.thread_time() - start < LENIENT * 0.2

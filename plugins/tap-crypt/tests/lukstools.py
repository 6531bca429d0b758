"""LUKS disks made by QEMU, by cryptsetup, and by hand."""

import base64
import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

from peers import by_qemu, peer
from tapcore.formats.luks import keys
from tapcore.luks import create_luks
from tapcore.sectorcipher import SectorCipher

KEY = b"secret"
MIB = 1 << 20


def key_file(folder: Path) -> Path:
    path = folder / "key"
    path.write_bytes(KEY)
    return path


def qemu(path: Path, size: int, *options: str) -> None:
    """A disk by qemu-img, version 1, empty."""
    words = ",".join(["key-secret=s", "iter-time=10", *options])
    command = [peer("qemu-img"), "create", "-q", "-f", "luks"]
    command += ["--object", f"secret,id=s,data={KEY.decode()}", "-o", words, str(path), str(size)]
    done = by_qemu(command)
    assert not done.returncode, done.stderr


def qemu_options(path: Path) -> list[str]:
    """By which QEMU's tools open it."""
    image = f"driver=luks,key-secret=s,file.driver=file,file.filename={path}"
    return ["--object", f"secret,id=s,data={KEY.decode()}", "--image-opts", image]


def cryptsetup(path: Path, content: bytes, *options: str) -> None:
    """A disk by cryptsetup, version 2, which encrypts content that is there."""
    path.write_bytes(content)
    os.truncate(path, len(content) + 32 * MIB)
    command = [peer("cryptsetup"), "reencrypt", "-q", "--encrypt", "--type", "luks2"]
    command += ["--reduce-device-size", "32M", "--key-file", str(key_file(path.parent)), *options]
    subprocess.run([*command, str(path)], check=True, capture_output=True)


def decrypted(path: Path) -> bytes:
    """What cryptsetup makes of a disk of its own; the file is changed by it."""
    command = [peer("cryptsetup"), "reencrypt", "-q", "--decrypt", "--force-offline-reencrypt"]
    command += ["--key-file", str(key_file(path.parent)), "--header", f"{path}.header", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path.read_bytes()


def by_hand(content: bytes, **options: Any) -> bytes:
    """A disk of version 1."""
    options = {"seconds": 0.0, **options}
    header, cipher = create_luks(KEY, **options)
    return header + cipher.encrypt(0, content)


class Luks2:
    """A header of version 2, to be damaged before it is written.

    Attributes:
        said: its JSON.
        number: of each copy.
    """

    SIZE = 16 << 10
    AREA = 32 << 10
    DATA = 512 << 10

    def __init__(self, sector_size: int = 512, kdf: dict[str, Any] | None = None) -> None:
        self.key = bytes(range(64))
        salt = b"s" * 32
        self.kdf = kdf or {"type": "pbkdf2", "hash": "sha256", "iterations": 1000}
        self.kdf["salt"] = base64.b64encode(salt).decode()
        self.number = (3, 3)
        digest = keys.derive("sha256", self.key, salt, 1000, 32)
        slot = {
            "type": "luks2",
            "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": str(self.AREA),
                "size": "258048",
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            },
            "kdf": self.kdf,
        }
        segment = {
            "type": "crypt",
            "offset": str(self.DATA),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": sector_size,
        }
        self.said: dict[str, Any] = {
            "keyslots": {"0": slot},
            "tokens": {},
            "segments": {"0": segment},
            "digests": {
                "0": {
                    "type": "pbkdf2",
                    "keyslots": ["0"],
                    "segments": ["0"],
                    "hash": "sha256",
                    "iterations": 1000,
                    "salt": base64.b64encode(salt).decode(),
                    "digest": base64.b64encode(digest).decode(),
                }
            },
            "config": {"json_size": "12288", "keyslots_size": "16744448"},
        }
        self.slot, self.segment = slot, segment

    def _copy(self, second: bool) -> bytes:
        text = json.dumps(self.said).encode().ljust(self.SIZE - 4096, b"\0")
        offset = self.SIZE if second else 0
        binary = bytearray(
            struct.pack(
                ">6sHQQ48s32s64s40s48sQ",
                b"SKUL\xba\xbe" if second else b"LUKS\xba\xbe",
                2,
                self.SIZE,
                self.number[second],
                b"label",
                b"sha256",
                b"salt",
                b"a-uuid",
                b"",
                offset,
            ).ljust(4096, b"\0")
        )
        binary[448:480] = hashlib.sha256(binary + text).digest()
        return bytes(binary) + text

    def disk(self, content: bytes) -> bytearray:
        """The whole disk."""
        made = bytearray(self.DATA)
        made[: self.SIZE] = self._copy(False)
        made[self.SIZE : 2 * self.SIZE] = self._copy(True)
        slot_key = keys.derive("sha256", KEY, b"s" * 32, 1000, 64)
        area = keys.split(self.key, 4000, "sha256")
        made[self.AREA : self.AREA + len(area)] = SectorCipher(slot_key).encrypt(0, area)
        size = self.segment["sector_size"]
        cipher = SectorCipher(self.key, sector_size=int(str(size)))
        return made + cipher.encrypt(0, content)

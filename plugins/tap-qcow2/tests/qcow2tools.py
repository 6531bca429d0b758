"""QEMU's tools as the other side: images that they make, and what they say of ours."""

import json
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers import by_qemu, peer

PASSPHRASE = "correct horse"
SECRET = ("--object", f"secret,id=key,data={PASSPHRASE}")

MIB = 1 << 20


def run(tool: str, *words: object, status: int = 0) -> str:
    """Standard output of a tool that ends with a status.

    It runs in the folder of the last file named: QEMU looks for data files in the current one.
    """
    home = next((word.parent for word in reversed(words) if isinstance(word, Path)), None)
    done = by_qemu([peer(tool), *map(str, words)], home)
    assert done.returncode == status, f"{tool} {words}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_img(*words: object, status: int = 0) -> str:
    """`qemu-img`."""
    return run("qemu-img", *words, status=status)


def qemu_io(image: Path, *commands: str, options: Sequence[str] = ("-f", "qcow2")) -> str:
    """`qemu-io` on an image; each command has to succeed."""
    words: list[object] = [*options]
    for command in commands:
        words += ["-c", command]
    said = run("qemu-io", *words, image)
    assert "error" not in said.lower(), said
    assert "failed" not in said.lower(), said
    return said


def create(
    image: Path,
    size: int | None = None,
    *,
    parent: str = "",
    form: str = "qcow2",
    **options: object,
) -> Path:
    """`qemu-img create`, or a copy of what it made for the same words.

    For a LUKS header it measures a second long how fast the processor is, whatever it is told.

    Args:
        image: the new file.
        size: bytes; None for the parent's.
        parent: its name as recorded.
        form: the parent's format.
        options: for `-o`, with "_" for what is not a letter in `encrypt.format`.
    """
    words: list[object] = ["create", "-q", "-f", "qcow2", *_options(options)]
    if parent:
        words += ["-b", parent, "-F", form]
    what = (*words, size)
    if what in _LUKS and not image.exists():
        image.write_bytes(_LUKS[what])
        return image
    qemu_img(*words, image, *([] if size is None else [size]))
    if (
        options.get("encrypt_format") == "luks"
        and "data_file" not in options
        and image.stat().st_size <= 8 * MIB
    ):
        _LUKS[what] = image.read_bytes()
    return image


_LUKS: dict[tuple[object, ...], bytes] = {}
"""Images by the words that they were made for."""


def convert(
    source: Path, image: Path, *, compress: bool = False, form: str = "raw", **options: object
) -> Path:
    """`qemu-img convert` to qcow2; options as for `create`."""
    flags = ["-c"] if compress else []
    qemu_img("convert", *flags, "-f", form, "-O", "qcow2", *_options(options), source, image)
    return image


def _options(options: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        if name == "encrypt_format":
            words += [*SECRET, "-o", f"encrypt.format={value},encrypt.key-secret=key"]
            if value == "luks":
                words += ["-o", "encrypt.iter-time=10"]
        else:
            words += ["-o", f"{name}={value}"]
    return words


def image_options(image: Path) -> str:
    """`--image-opts` of an encrypted image, to be used with `SECRET`."""
    return f"driver=qcow2,file.filename={image},encrypt.key-secret=key"


def content_by_qemu(image: Path, *, encrypted: bool = False, snapshot: str = "") -> bytes:
    """The whole disk as `qemu-img convert -O raw` reads it."""
    raw = image.with_name(image.name + ".by-qemu")
    words = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    if encrypted:
        qemu_img("convert", *SECRET, "--image-opts", image_options(image), "-O", "raw", raw)
    else:
        qemu_img("convert", "-f", "qcow2", *words, "-O", "raw", image, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def checked(image: Path, *flags: str) -> dict[str, Any]:
    """`qemu-img check --output=json`: whatever it found."""
    words = [peer("qemu-img"), "check", "--output=json", "-f", "qcow2", *flags, str(image)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
        cwd=image.parent,
    )
    assert done.returncode in (0, 2, 3), done.stderr
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def assert_clean(image: Path) -> None:
    """`qemu-img check` finds neither leaks nor errors."""
    words = [peer("qemu-img"), "check", "-f", "qcow2", str(image)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
        cwd=image.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def source_content(rng: random.Random, size: int) -> bytes:
    """Text, noise, holes and patterns, in runs of every length; noise and text near the end too."""
    words = [rng.randbytes(rng.randint(1, 9)).hex().encode() for _ in range(200)]
    parts: list[bytes] = []
    done = 0
    while done < size:
        length = rng.choice((512, 4096, 65536, 300_000, MIB)) + rng.choice((0, 0, 512, 7))
        kind = rng.randrange(5)
        if kind == 0:
            part = rng.randbytes(length)
        elif kind == 1:
            part = b" ".join(rng.choices(words, k=length // 8))
        elif kind == 2:
            part = bytes(length)
        elif kind == 3:
            part = rng.randbytes(rng.choice((1, 2, 16, 512))) * length
        else:
            part = b"".join(
                rng.choice((bytes(512), rng.randbytes(512))) for _ in range(length // 512)
            )
        parts.append(part[:length])
        done += len(parts[-1])
    return b"".join(parts)[:size]

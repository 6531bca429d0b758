"""Every kind of disk that can be written to, for what changes it while it is served.

Also: which changes a kind does not know, and what has to be said then; who else reads its images.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

import tapcore
from tapcore.interface.keys import Keys
from tapcore.tools.check import check_image

PASSPHRASE = b"a passphrase"
KEY_FILE = "key.txt"
CHECKED_BY_QEMU = {"qcow2", "vmdk", "vhdx", "vdi"}


@attrs.frozen
class Kind:
    """One kind of disk.

    Attributes:
        name: for people, and of its files.
        handle: of its images.
        options: of its format, `{name}` being the image's.
        child: handle of its children, where that is another one.
        child_options: of them, where they are others.
        qemu: how QEMU opens an image that has no parent, `{path}` and `{size}` being the image's;
            empty: it does not.
        chains_in_qemu: it opens children of this kind, too.
        made_by_qemu: it makes such images with these options, too.
        locked: it is encrypted.
        leaks: space may be lost, which a check says.
        shows_longer_parent: a child that is shorter than its parent refuses to grow.
        unit: its size is a multiple of that, bytes.
        longest: chain, images.
        lacks: changes that it does not know: what is said then, as a pattern.
    """

    name: str
    handle: str
    options: Mapping[str, str] = attrs.field(factory=dict)
    child: str = ""
    child_options: Mapping[str, str] | None = None
    qemu: str = ""
    chains_in_qemu: bool = False
    made_by_qemu: bool = False
    locked: bool = False
    leaks: bool = False
    shows_longer_parent: bool = False
    unit: int = 512
    longest: int = 4
    lacks: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def child_handle(self) -> str:
        return self.child or self.handle


_LUKS = {"encrypt.format": "luks", "encrypt.key-file": KEY_FILE}
_AES = {"encrypt.format": "aes", "encrypt.key-file": KEY_FILE}


def _raw(handle: str, **how: Any) -> Kind:
    return Kind(handle, handle, child="qcow2", qemu="driver=raw", chains_in_qemu=True, **how)


def _qcow(name: str, qemu: str, **how: Any) -> Kind:
    # of format 1: a child does not record its parent's format, and what is guessed has no parent
    lacks = {
        "shrink": "a qcow image cannot be made smaller",
        "shrink of a child": "a qcow image cannot be made smaller",
        "snapshot of a child": "names a parent, but its own format was only guessed",
    }
    made = "locked" not in how
    return Kind(name, "qcow", qemu=qemu, made_by_qemu=made, longest=2, lacks=lacks, **how)


def _qcow2(name: str = "", **options: str) -> Kind:
    lacks = {}
    if "data_file" in options:
        lacks["inner"] = "has an external data file, which snapshots do not cover"
    if "data_file_raw" in options:
        lacks["snapshot"] = "data_file_raw and a parent exclude each other"
    if options.get("refcount_bits") == "1":
        lacks["inner"] = "a refcount would exceed 1: amend refcount_bits to a larger width"
    if options.get("compat") == "0.10":
        lacks["grow with inner"] = "a version 2 image with snapshots cannot be resized"
        lacks["shrink with inner"] = lacks["grow with inner"]
    return Kind(
        f"qcow2-{name}" if name else "qcow2",
        "qcow2",
        options,
        qemu="driver=qcow2",
        chains_in_qemu=True,
        made_by_qemu=True,
        lacks=lacks,
    )


def _sealed(name: str, **options: str) -> Kind:
    opened = "driver=qcow2,encrypt.key-secret=key"
    options |= _LUKS
    return Kind(name, "qcow2", options, qemu=opened, locked=True)


def _vmdk(name: str, subformat: str = "", **options: str) -> Kind:
    if subformat:
        options["subformat"] = subformat
    lacks = {
        "shrink": "a VMDK cannot be made smaller",
        "shrink of a child": "a VMDK cannot be made smaller",
    }
    if subformat == "streamOptimized":
        lacks |= {"grow": "a streamOptimized disk cannot grow"}
        larger = "has sectors of 65536 bytes, where the disk has 512"
        lacks |= {"commit into the first": larger, "swap of a child": larger}
    sparse: dict[str, str] | None = None
    if subformat and subformat != "twoGbMaxExtentSparse":
        sparse = {}
    return Kind(
        name,
        "vmdk",
        options,
        child_options=sparse,
        qemu="driver=vmdk",
        chains_in_qemu=True,
        made_by_qemu=True,
        leaks=subformat == "streamOptimized",  # what is written again goes behind all else
        lacks=lacks,
    )


def _vhd(name: str, **options: str) -> Kind:
    sparse: dict[str, str] | None = {} if "subformat" in options else None
    return Kind(
        name,
        "vhd",
        options,
        child_options=sparse,
        qemu="driver=vpc",
        leaks=True,  # blocks that were cut off
        shows_longer_parent=True,
    )


def _fixed_children(name: str, handle: str, qemu: str, text: str, **options: str) -> Kind:
    return Kind(
        name,
        handle,
        options,
        child_options={} if "subformat" in options else None,
        qemu=qemu,
        made_by_qemu=name == "vdi",
        leaks=handle == "vhdx",  # blocks that were given up, and not used again
        unit=int(options.get("logical_sector", "512")),
        lacks={"grow of a child": text, "shrink of a child": text},
    )


def _vhdx(name: str, *, qemu: str = "driver=vhdx", **options: str) -> Kind:
    text = "is a differencing VHDX, which keeps its size: convert it"
    return _fixed_children(name, "vhdx", qemu, text, **options)


def _vdi(name: str, *, qemu: str = "driver=vdi", **options: str) -> Kind:
    text = "is a differencing VDI, which is as large as its parent: commit it"
    return _fixed_children(name, "vdi", qemu, text, **options)


def _within(handle: str, qemu: str, *, locked: bool = False) -> Kind:
    """A disk that lies in an image: nothing makes it, or gives it another size."""
    lacks = {
        "grow": f"the format '{handle}' cannot be resized",
        "shrink": f"the format '{handle}' cannot be resized",
        "commit into the first": "only a file can be committed into",
        "swap": "a new image is made in a file|exists only while it is open",
    }
    return Kind(handle, handle, child="qcow2", qemu=qemu, locked=locked, lacks=lacks)


_RAM = {
    "snapshot": "a 'ram' disk exists only while it is open",
    "swap": "exists only while it is open",
    "none": "has no cache mode",
}

KINDS = {
    kind.name: kind
    for kind in (
        _raw("aio"),
        _raw("sync", lacks={"none": "always goes through the page cache; use aio:"}),
        Kind("ram", "ram", lacks=_RAM),
        _qcow("qcow", "driver=qcow", chains_in_qemu=True),
        _qcow(
            "qcow-aes",
            "driver=qcow,encrypt.format=aes,encrypt.key-secret=key",
            options=_AES,
            locked=True,
        ),
        _qcow2(),
        _qcow2("v2", compat="0.10"),
        _qcow2("lazy", lazy_refcounts="on"),
        _qcow2("refcounts-1", refcount_bits="1"),
        _qcow2("refcounts-64", refcount_bits="64"),
        *(_qcow2(size, cluster_size=size) for size in ("512", "1K", "2K", "4K", "16K")),
        *(_qcow2(size, cluster_size=size) for size in ("256K", "1M", "2M")),
        _qcow2("subclusters", extended_l2="on"),
        _qcow2("subclusters-16K", extended_l2="on", cluster_size="16K"),
        _qcow2("subclusters-2M", extended_l2="on", cluster_size="2M"),
        _qcow2("data-file", data_file="{name}.data"),
        _qcow2("data-file-raw", data_file="{name}.data", data_file_raw="on"),
        _sealed("qcow2-luks"),
        _sealed("qcow2-luks-512", cluster_size="512"),
        _sealed("qcow2-luks-subclusters", extended_l2="on"),
        _vmdk("vmdk"),
        _vmdk("vmdk-zeroed", zeroed_grain="on"),
        _vmdk("vmdk-split", "twoGbMaxExtentSparse"),
        _vmdk("vmdk-flat", "monolithicFlat"),
        _vmdk("vmdk-split-flat", "twoGbMaxExtentFlat"),
        _vmdk("vmdk-stream", "streamOptimized"),
        _vhd("vhd"),
        _vhd("vhd-512K", block_size="512K"),
        _vhd("vhd-fixed", subformat="fixed"),
        _vhdx("vhdx"),
        _vhdx("vhdx-1M", block_size="1M"),
        _vhdx("vhdx-4096", logical_sector="4096", qemu=""),
        _vhdx("vhdx-fixed", subformat="fixed"),
        _vdi("vdi"),
        _vdi("vdi-4K", block_size="4K", qemu=""),
        _vdi("vdi-128K", block_size="128K", qemu=""),
        _vdi("vdi-fixed", subformat="fixed"),
        _within("crypt", "driver=luks,key-secret=key", locked=True),
        _within("part", "driver=raw,offset=1048576,size={size}"),
    )
}


# ---- images ------------------------------------------------------------------------------------


def path_of(image: str) -> str:
    """Of the file: there may be several handles before it."""
    return image.rpartition(":")[2]


def new_name(kind: Kind, folder: Path, number: int, *, child: bool) -> str:
    """A name for an image that is not there yet."""
    handle = kind.child_handle if child else kind.handle
    return f"{handle}:{folder / f'{number}.{handle}'}"


def options_of(kind: Kind, image: str, *, child: bool) -> dict[str, str]:
    """For a new image."""
    options = kind.options
    if child:
        options = {} if kind.child else options
        options = options if kind.child_options is None else kind.child_options
    path = path_of(image)
    key = os.path.join(os.path.dirname(path), KEY_FILE)
    return {
        name: key if name == "encrypt.key-file" else value.format(name=path)
        for name, value in options.items()
    }


def make(kind: Kind, folder: Path, size: int) -> str:
    """Make the first image of a disk; returns its name."""
    if kind.locked:
        (folder / KEY_FILE).write_bytes(PASSPHRASE)
    if kind.handle == "ram":
        return f"ram:{size}"
    image = new_name(kind, folder, 0, child=False)
    path = path_of(image)
    if kind.handle == "crypt":
        with open(path, "wb") as file:
            file.truncate(size + (2 << 20))
        how = ["--type", "luks1", "--pbkdf-force-iterations", "1000"]
        run("cryptsetup", "luksFormat", "-q", *how, path, str(folder / KEY_FILE))
    elif kind.handle == "part":
        with open(path, "wb") as file:
            file.truncate(size + (2 << 20))
        run("sfdisk", "-q", path, said=f"2048,{size >> 9}\n")
        image = f"part:1:aio:{path}"
    else:
        tapcore.create_image(image, size, options=options_of(kind, image, child=False))
    return image


def keys(kind: Kind) -> Keys | None:
    """What its images are opened with."""
    return Keys(PASSPHRASE) if kind.locked else None


# ---- what others say of them ---------------------------------------------------------------------


def check(kind: Kind, image: str, *, child: bool, in_use: bool = False) -> None:
    """That an image is whole, as far as there is anybody who can say so.

    Args:
        kind: of the disk.
        image: one of its chain.
        child: it has a parent.
        in_use: which somebody may have open.
    """
    handle = image.partition(":")[0]
    if "check" in tapcore.Registry().get(handle).capabilities:
        result = check_image(image)
        assert not result.corruptions, (image, result)
        assert kind.leaks or not result.leaks, (image, result)
    if handle in CHECKED_BY_QEMU and kind.qemu and (kind.chains_in_qemu or not child):
        secret, opened = _in_qemu(kind, image, child=child)
        shared = ["-U"] if in_use else []
        run("qemu-img", "check", "-q", *secret, *shared, "--image-opts", opened)


def _in_qemu(kind: Kind, image: str, *, child: bool, size: int = 0) -> tuple[list[str], str]:
    """How it opens an image: its arguments before, and what names that."""
    path = path_of(image)
    opened = "driver=qcow2" if child and kind.child else kind.qemu
    secret = f"secret,id=key,file={os.path.join(os.path.dirname(path), KEY_FILE)}"
    return [
        "--object",
        secret,
    ] if kind.locked else [], f"{opened.format(size=size)},file.filename={path}"


def same_in_qemu(kind: Kind, image: str, raw: Path, *, child: bool) -> bool:
    """Compare an image's content, as QEMU reads it, with a raw file; whether it reads it at all."""
    if not kind.qemu or (child and not kind.chains_in_qemu):
        return False
    secret, opened = _in_qemu(kind, image, child=child, size=raw.stat().st_size)
    words = ["--image-opts", opened, f"driver=raw,file.filename={raw}"]
    run("qemu-img", "compare", "-q", *secret, *words)
    return True


def run(*command: str, said: str = "") -> str:
    """What a command says; AssertionError where it fails."""
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    text = f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == 0, text
    return done.stdout

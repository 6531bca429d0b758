"""Options of qemu-img and qemu-nbd that mean nothing here, and the way to what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class OtherWay(NamedTuple):
    """Attributes:
    spellings: of the option; the last one is named in the line.
    text: the way, as the rest of a sentence.
    takes: a value follows it.
    """

    spellings: tuple[str, ...]
    text: str
    takes: bool = False


_IMAGE_OPTS = OtherWay(("--image-opts",), "name the image as HANDLE:PATH, its keys with --key-file")
_OBJECT = OtherWay(("--object",), "a passphrase comes with --key-file FILE", takes=True)
_IN_USE = OtherWay(
    ("--force-share", "-U"),
    "an image that is being written would be read torn; 'tapdisk info' looks at it without a lock",
)
_RATE = OtherWay(("--rate-limit", "-r"), "run it under ionice or in a cgroup", takes=True)
_OPENING = (_IMAGE_OPTS, _OBJECT)

INSTEAD: Final[Mapping[str, tuple[OtherWay, ...]]] = {
    "create": (
        *_OPENING,
        OtherWay(
            ("--backing-unsafe", "-u"),
            "the parent is looked at; give it another name later with 'tapdisk rebase --unsafe'",
        ),
    ),
    "convert": (
        *_OPENING,
        _IN_USE,
        _RATE,
        OtherWay(("--target-image-opts",), "name it HANDLE:PATH"),
    ),
    "info": _OPENING,
    "check": (*_OPENING, _IN_USE),
    "map": (
        *_OPENING,
        _IN_USE,
        OtherWay(("--start-offset", "-s"), "the whole map is printed, see --json", takes=True),
        OtherWay(("--max-length", "-l"), "the whole map is printed, see --json", takes=True),
    ),
    "measure": (*_OPENING, _IN_USE),
    "compare": (*_OPENING, _IN_USE),
    "commit": (
        *_OPENING,
        _RATE,
        OtherWay(
            ("--backing", "-b"),
            "an image goes into its own parent; commit that one next, then on",
            takes=True,
        ),
    ),
    "rebase": (*_OPENING, _IN_USE),
    "resize": (
        *_OPENING,
        OtherWay(("--preallocation",), "what a disk grows by is left unallocated", takes=True),
    ),
    "amend": _OPENING,
    "snapshot": (*_OPENING, _IN_USE),
    "bench": (
        *_OPENING,
        OtherWay(("--count", "-c"), "it runs for so many --seconds", takes=True),
        OtherWay(("--buffer-size", "-s"), "--bs SIZE is the size of a request", takes=True),
        OtherWay(("-w",), "--rw write --force writes"),
    ),
    "bitmap": (*_OPENING, OtherWay(("-F",), "name it HANDLE:PATH with --from", takes=True)),
    "serve": (
        *_OPENING,
        OtherWay(
            ("--connect", "-c"),
            "serve on a --socket, then 'nbd-client -unix SOCKET DEVICE' connects it",
            takes=True,
        ),
        OtherWay(("--disconnect", "-d"), "'nbd-client -d DEVICE' does that", takes=True),
        OtherWay(("--list", "-L"), "'nbdinfo --list URI' does that"),
        OtherWay(
            ("--offset", "-o"), "a partition is an image of its own: part:N:IMAGE", takes=True
        ),
        OtherWay(
            ("--partition", "-P"), "a partition is an image of its own: part:N:IMAGE", takes=True
        ),
        OtherWay(
            ("--load-snapshot", "-l"),
            "'tapdisk convert --snapshot NAME' makes an image of it to serve",
            takes=True,
        ),
        OtherWay(
            ("--description", "-D"), "an export is described by its name (--export)", takes=True
        ),
        OtherWay(("--aio",), "--cache none is O_DIRECT with Linux AIO", takes=True),
        OtherWay(
            ("--discard",), "what clients discard is given back, where the format can", takes=True
        ),
        OtherWay(("--detect-zeroes",), "zeroes that clients write are stored as data", takes=True),
        OtherWay(("--verbose", "-v"), "--log-level info tells what happens"),
        OtherWay(("--tls-creds",), "see --tls, --tls-certificates and --tls-psk", takes=True),
        OtherWay(("--tls-authz",), "--tls-allow SUBJECT lets only these clients in", takes=True),
        OtherWay(
            ("--bitmap", "-B"),
            "every bitmap of an image is offered, as qemu:dirty-bitmap:NAME",
            takes=True,
        ),
        OtherWay(("--snapshot", "-s"), "--overlay keeps what clients write apart"),
    ),
}
"""By command."""

"""The engine: takes the requests of a disk, and sees to it that each is answered exactly once."""

from tapcore.engine.engine import Engine, engine_of
from tapcore.engine.extents import MappedExtent, chain_extents
from tapcore.engine.requests import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_COMPRESSED,
    ZERO,
    Request,
)

__all__ = [
    "DISCARD",
    "FLUSH",
    "READ",
    "WRITE",
    "WRITE_COMPRESSED",
    "ZERO",
    "Engine",
    "MappedExtent",
    "Request",
    "chain_extents",
    "engine_of",
]

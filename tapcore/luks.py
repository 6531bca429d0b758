"""LUKS headers: the public name, for ever, of `formats.luks`."""

from tapcore.formats.luks.header import HEADER_SIZE, LuksHeader, LuksInfo
from tapcore.formats.luks.keyslots import WrongPassphraseError, create_luks, open_luks
from tapcore.formats.luks.version2 import Luks2Header, open_luks2, read_luks2

__all__ = [
    "HEADER_SIZE",
    "Luks2Header",
    "LuksHeader",
    "LuksInfo",
    "WrongPassphraseError",
    "create_luks",
    "open_luks",
    "open_luks2",
    "read_luks2",
]

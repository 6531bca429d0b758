"""Encrypted sectors: the public name, for ever, of `formats.cipher`."""

from tapcore.formats.cipher import SectorCipher, legacy_aes

__all__ = ["SectorCipher", "legacy_aes"]

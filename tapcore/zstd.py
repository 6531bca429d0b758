"""zstd: the public name, for ever, of `formats.zstd`."""

from tapcore.formats.zstd import decompress_into, into_place, zstd_module

__all__ = ["decompress_into", "into_place", "zstd_module"]

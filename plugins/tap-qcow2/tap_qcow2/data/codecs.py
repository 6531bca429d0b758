"""The two compressions of clusters: raw deflate, and zstd.

Source: qcow2.rst, "Compressed Clusters Descriptor" and the header field `compression_type`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Final

from tap_qcow2.ondisk import layout
from tapcore import ImageFormatError
from tapcore.deflate import deflate, inflate

_TABLE_LOG: Final = 14
"""log2 of the entries of each of zstd's two tables of what came before."""

Codec = tuple[Callable[[bytes, int], bytes], Callable[[Any], bytes]]
"""`inflate(stream, limit)` and `deflate(content)`."""


def codec(compression_type: int) -> Codec:
    """How clusters of an image are compressed.

    Raises:
        NotSupportedError: it needs a package; the text says which.
    """
    if layout.COMPRESSION_NAMES[compression_type] == "zstd":
        return _zstd()
    return inflate, _deflate


def inflate_into(compression_type: int) -> Callable[[bytes, memoryview], bool] | None:
    """Inflates a cluster straight to where it is wanted, where something here can.

    Returns:
        False where it could not: `codec` has what tells why.
    """
    if layout.COMPRESSION_NAMES[compression_type] != "zstd":
        return None
    from tapcore.zstd import into_place

    return into_place()


def _deflate(content: Any) -> bytes:
    """For QEMU, which reads with a window of 4 KiB."""
    return deflate(content, wbits=-12)


@functools.cache
def _zstd() -> Codec:
    from tapcore.zstd import zstd_module

    zstd = zstd_module("is compressed with zstd, which needs a package: pip install backports.zstd")
    kept = threading.local()
    # The level that QEMU writes, with tables that fit a cluster and a processor's cache better:
    # 0.91 to 0.99 of the time, and at most 0.4 % larger, for binaries, text and the benchmark.
    tables = {
        zstd.CompressionParameter.compression_level: zstd.COMPRESSION_LEVEL_DEFAULT,
        zstd.CompressionParameter.hash_log: _TABLE_LOG,
        zstd.CompressionParameter.chain_log: _TABLE_LOG,
    }

    def inflate_zstd(stream: bytes, limit: int) -> bytes:
        """What follows the frame in the last sector is not part of it."""
        try:
            decompressor = zstd.ZstdDecompressor()
            content: bytes = decompressor.decompress(stream, limit)
            while len(content) < limit and not decompressor.eof and not decompressor.needs_input:
                content += decompressor.decompress(b"", limit - len(content))
        except zstd.ZstdError as exc:
            raise ImageFormatError(f"has a damaged compressed cluster ({exc})") from None
        return content

    def deflate_zstd(content: Any) -> bytes:
        """Each thread has a compressor, whose tables are used again: to make them costs 20 us."""
        compressor = kept.__dict__.pop("compressor", None) or zstd.ZstdCompressor(options=tables)
        compressor.set_pledged_input_size(len(content))  # so that it is in the frame, for readers
        compressed: bytes = compressor.compress(content, compressor.FLUSH_FRAME)
        kept.compressor = compressor  # not one that has failed
        return compressed

    return inflate_zstd, deflate_zstd

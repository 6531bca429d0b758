"""The numbers and wire structures of the NBD protocol.

In quotation marks are section titles of doc/proto.md (NetworkBlockDevice/nbd), their source.

What only the handshake uses are enumerations. What the transmission loop compares for every
request are plain ints, because a member of an IntEnum costs several times as much to look up
and to combine.
"""

import errno
import struct
from enum import IntEnum, IntFlag
from typing import Final

# Magic numbers: "Newstyle negotiation", "Fixed newstyle negotiation".
NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

# Magic numbers: "Request message", "Simple reply message", "Structured reply chunk message".
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
# The same sections of the extension EXTENDED_HEADERS (branch extension-ext-header).
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

# Longest string of any kind in bytes of UTF-8: "Conventions".
MAX_STRING: Final = 4096
# What a server without size constraints of its own supports, in bytes: "Size constraints".
DEFAULT_BLOCK_MIN: Final = 1
DEFAULT_BLOCK_PREFERRED: Final = 4096
DEFAULT_BLOCK_MAX: Final = 32 * 1024 * 1024
# Bounds of what a server may advertise, in bytes: "Size constraints".
LARGEST_BLOCK_MIN: Final = 65536
SMALLEST_BLOCK_PREFERRED: Final = 512
# Longest read that the DF flag may not make fail, in bytes: "Request types", NBD_CMD_READ.
MAX_UNFRAGMENTED_READ: Final = 65536
# Most extents in one block status chunk: "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS.
MAX_STATUS_EXTENTS: Final = 1 << 20

# "Newstyle negotiation": NBDMAGIC, IHAVEOPT, handshake flags.
GREETING: Final = struct.Struct(">QQH")
# "Client flags".
CLIENT_FLAGS: Final = struct.Struct(">I")
# "Newstyle negotiation": IHAVEOPT, option, length of its data.
OPTION_HEADER: Final = struct.Struct(">QII")
# "Fixed newstyle negotiation": magic, option, reply type, length of its data.
OPTION_REPLY: Final = struct.Struct(">QIII")
# "Newstyle negotiation", answer to EXPORT_NAME: size, transmission flags; then the zeroes.
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
EXPORT_NAME_ZEROES: Final = bytes(124)
# "Option reply types", NBD_REP_INFO: the type and what follows it.
INFO_TYPE: Final = struct.Struct(">H")
INFO_EXPORT: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
# "Request message": magic, command flags, type, cookie, offset, length.
REQUEST: Final = struct.Struct(">IHHQQI")
# The extended one, with the same fields: its length has 64 bits.
EXTENDED_REQUEST: Final = struct.Struct(">IHHQQQ")
# "Simple reply message": magic, error, cookie.
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
# "Structured reply chunk message": magic, flags, type, cookie, length of the payload.
CHUNK_HEADER: Final = struct.Struct(">IHHQI")
# "Extended reply chunk message": magic, flags, type, cookie, the request's offset, length.
EXTENDED_HEADER: Final = struct.Struct(">IHHQQQ")
# The same with the payload's start, "Structured reply types": offset of the data.
DATA_CHUNK_HEADER: Final = struct.Struct(">IHHQIQ")
EXTENDED_DATA_HEADER: Final = struct.Struct(">IHHQQQQ")
# The payload of a hole: its offset and size.
HOLE: Final = struct.Struct(">QI")
# "Structured reply types": error and length of the message; context id first, then runs.
ERROR_CHUNK: Final = struct.Struct(">IH")
STATUS_DESCRIPTOR: Final = struct.Struct(">II")
# NBD_REPLY_TYPE_BLOCK_STATUS_EXT: context id and count first, then runs.
STATUS_HEAD_EXT: Final = struct.Struct(">II")
STATUS_DESCRIPTOR_EXT: Final = struct.Struct(">QQ")
# Lengths and counts inside an option's data, context ids.
U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
# The effect length in the payload of NBD_CMD_BLOCK_STATUS.
U64: Final = struct.Struct(">Q")

# The one metadata context that the protocol defines: "base:allocation metadata context".
BASE_ALLOCATION: Final = "base:allocation"
# QEMU's, docs/interop/nbd.rst: the depth of the chain, under our name too, and dirty bitmaps.
DEPTH: Final = "tapcore:depth"
QEMU_DEPTH: Final = "qemu:allocation-depth"
QEMU_BITMAP: Final = "qemu:dirty-bitmap:"


class HandshakeFlag(IntFlag):
    """What the server says in its greeting ("Handshake flags")."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """What the client answers to the greeting ("Client flags")."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


CLIENT_FLAGS_KNOWN: Final = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)


class TransmissionFlag(IntFlag):
    """What an export can do, as told when it is chosen ("Transmission flags")."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


class Opt(IntEnum):
    """What a client asks for in the handshake ("Option types")."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Rep(IntEnum):
    """How a server answers an option ("Option reply types"); errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9
    ERR_EXT_HEADER_REQD = (1 << 31) + 10


class InfoType(IntEnum):
    """What a reply of type INFO is about ("Option reply types", NBD_REP_INFO)."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


# "Request types".
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_RESIZE: Final = 8

# "Command flags".
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4
CMD_FLAG_PAYLOAD_LEN: Final = 1 << 5

# "Structured reply flags".
REPLY_FLAG_DONE: Final = 1 << 0

# "Structured reply types"; errors have bit 15 set.
REPLY_TYPE_NONE: Final = 0
REPLY_TYPE_OFFSET_DATA: Final = 1
REPLY_TYPE_OFFSET_HOLE: Final = 2
REPLY_TYPE_BLOCK_STATUS: Final = 5
REPLY_TYPE_BLOCK_STATUS_EXT: Final = 6
REPLY_TYPE_ERROR: Final = (1 << 15) + 1
REPLY_TYPE_ERROR_OFFSET: Final = (1 << 15) + 2

# State bits of a block status extent: "base:allocation metadata context".
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1
# And of "qemu:dirty-bitmap:NAME".
STATE_DIRTY: Final = 1 << 0

# "Error values".
NBD_EPERM: Final = 1
NBD_EIO: Final = 5
NBD_ENOMEM: Final = 12
NBD_EINVAL: Final = 22
NBD_ENOSPC: Final = 28
NBD_EOVERFLOW: Final = 75
NBD_ENOTSUP: Final = 95
NBD_ESHUTDOWN: Final = 108

_FROM_ERRNO: Final = {
    errno.EPERM: NBD_EPERM,
    errno.EROFS: NBD_EPERM,
    errno.EIO: NBD_EIO,
    errno.ENOMEM: NBD_ENOMEM,
    errno.EINVAL: NBD_EINVAL,
    errno.ENOSPC: NBD_ENOSPC,
    errno.EDQUOT: NBD_ENOSPC,
    errno.EFBIG: NBD_ENOSPC,
    errno.EOVERFLOW: NBD_EOVERFLOW,
    errno.ENOTSUP: NBD_ENOTSUP,
    errno.EOPNOTSUPP: NBD_ENOTSUP,
    errno.ESHUTDOWN: NBD_ESHUTDOWN,
}


def nbd_errno(errno_value: int) -> int:
    """The NBD error for a positive errno of this system ("Error values").

    Anything that the protocol has no value for becomes EIO. So does 0: a failure that carries no
    reason must not look like success.
    """
    return _FROM_ERRNO.get(errno_value, NBD_EIO)

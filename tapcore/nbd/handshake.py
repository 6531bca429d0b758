"""The server's side of the NBD fixed newstyle handshake, as a state machine without I/O.

Whoever owns the socket feeds what arrives to `Handshake.receive` and sends what
`Handshake.data_to_send` gives, until the state is no longer NEGOTIATING. In quotation marks are
section titles of doc/proto.md (NetworkBlockDevice/nbd).

Nothing that a client says is believed: a length is compared with a limit before anything is
stored, and the machine keeps at most one option of at most `HandshakeLimits.stored` bytes.
"""

import enum
from collections.abc import Callable
from typing import Final

import attrs

from tapcore.nbd import constants as wire
from tapcore.nbd.constants import ClientFlag, HandshakeFlag, InfoType, Opt, Rep, TransmissionFlag
from tapcore.nbd.exportinfo import ExportCatalog, ExportInfo, Negotiated
from tapcore.nbd.optiondata import OptionData, OptionError, decode

# Options that come without data.
_WITHOUT_DATA: Final = {Opt.LIST, Opt.STRUCTURED_REPLY, Opt.EXTENDED_HEADERS}
# Options whose data is read; that of all others is passed over.
_WITH_DATA: Final = {Opt.EXPORT_NAME, Opt.INFO, Opt.GO, Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT}


@attrs.frozen
class HandshakeLimits:
    """How much of a client's negotiation is put up with; above it, the connection closes.

    All but `stored` and `queries`, which make an option fail with ERR_TOO_BIG, are reasons to
    close. Time is not known here: a deadline is up to the owner of the socket.
    """

    # Options of one connection: enough to list a thousand exports with their contexts.
    options: int = 4096
    # Bytes of one option's data that are kept for reading it.
    stored: int = 64 * 1024
    # Bytes of one option's data that are passed over, so that it can be answered.
    skipped: int = 1024 * 1024
    # Bytes of all options' data together.
    total: int = 16 * 1024 * 1024
    # Metadata context queries in one option.
    queries: int = 256
    # Bytes of replies not yet taken when the next option comes: clients have to wait for them.
    unsent: int = 1024 * 1024


class TlsMode(enum.Enum):
    """What becomes of STARTTLS ("Server-side requirements")."""

    OFF = "off"  # NOTLS
    ON = "on"  # SELECTIVETLS, with no export that demands it
    REQUIRE = "require"  # FORCEDTLS


class HandshakeState(enum.Enum):
    """Where a connection is ("Protocol phases")."""

    NEGOTIATING = "negotiating"
    STARTING_TLS = "starting TLS"
    TRANSMISSION = "transmission"
    CLOSED = "closed"


def _matches(query: str, context: str) -> bool:
    """Does a LIST_META_CONTEXT query ask for `context`? ("Metadata querying")."""
    _, colon, leaf = query.partition(":")
    # An empty leaf-name stands for its whole namespace; "base" stands for nothing.
    wildcard = (colon and not leaf) or query == wire.QEMU_BITMAP
    return query == context or bool(wildcard and context.startswith(query))


@attrs.define(eq=False)
class Handshake:
    """One connection's handshake, from the greeting to transmission or the end.

    `negotiated` is set in TRANSMISSION, and `leftover` holds the bytes that came after the last
    option. In CLOSED, `error` says why in one line; it is None where the client said goodbye.
    What `data_to_send` still has then is to be sent before closing.

    In STARTING_TLS that is the last to be sent in the clear; then the owner has TLS set up, and
    calls `tls_started`, or closes.
    """

    _catalog: ExportCatalog
    tls: TlsMode = attrs.field(default=TlsMode.OFF, kw_only=True)
    limits: HandshakeLimits = attrs.field(factory=HandshakeLimits, kw_only=True)
    state: HandshakeState = attrs.field(default=HandshakeState.NEGOTIATING, init=False)
    negotiated: Negotiated | None = attrs.field(default=None, init=False)
    leftover: bytes = attrs.field(default=b"", init=False)
    error: str | None = attrs.field(default=None, init=False)

    _in: bytearray = attrs.field(factory=bytearray, init=False)
    _out: bytearray = attrs.field(factory=bytearray, init=False)
    # What takes the next piece, None after the end; bytes to pass over before it; its own bytes.
    _next: Callable[[bytes], None] | None = attrs.field(default=None, init=False)
    _skip: int = attrs.field(default=0, init=False)
    _need: int = attrs.field(default=0, init=False)
    _client_flags: int = attrs.field(default=0, init=False)
    # The option in hand, and the length of its data in bytes.
    _option: int = attrs.field(default=0, init=False)
    _length: int = attrs.field(default=0, init=False)
    # Since the beginning: options, and bytes of their data.
    _options: int = attrs.field(default=0, init=False)
    _total: int = attrs.field(default=0, init=False)
    _structured: bool = attrs.field(default=False, init=False)
    _extended: bool = attrs.field(default=False, init=False)
    _encrypted: bool = attrs.field(default=False, init=False)
    # The name that the last SET_META_CONTEXT gave, and what it chose.
    _context_name: str = attrs.field(default="", init=False)
    _contexts: dict[int, str] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        """The server speaks first."""
        flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        self._out += wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, flags)
        self._next, self._need = self._take_client_flags, wire.CLIENT_FLAGS.size

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client, any number, and do all that is complete."""
        if self._next is not None:
            self._in += data
            while self._step():
                pass
        elif self.negotiated is not None:
            self.leftover += data

    def tls_started(self) -> None:
        """All that comes and goes is encrypted from now on; what was agreed before is forgotten."""
        self.state, self._encrypted = HandshakeState.NEGOTIATING, True
        self._structured = self._extended = False
        self._contexts, self._context_name = {}, ""
        self._next, self._need = self._take_header, wire.OPTION_HEADER.size

    def data_to_send(self) -> bytes:
        """Take the bytes that are to be sent to the client."""
        data, self._out = bytes(self._out), bytearray()
        return data

    def _step(self) -> bool:
        """Do the next piece; False when it has not arrived, or there is none to come."""
        passed = min(self._skip, len(self._in))
        del self._in[:passed]
        self._skip -= passed
        if self._next is None or self._skip or len(self._in) < self._need:
            return False
        piece = bytes(memoryview(self._in)[: self._need])
        del self._in[: self._need]
        self._next(piece)
        return True

    def _end(self, state: HandshakeState, error: str | None = None) -> None:
        self.state, self.error, self._next = state, error, None
        if state is HandshakeState.TRANSMISSION:
            self.leftover = bytes(self._in)
        self._in.clear()

    def _take_client_flags(self, piece: bytes) -> None:
        (self._client_flags,) = wire.CLIENT_FLAGS.unpack(piece)
        if self._client_flags & ~wire.CLIENT_FLAGS_KNOWN:
            self._end(HandshakeState.CLOSED, f"unknown client flags {self._client_flags:#x}")
        else:
            self._next, self._need = self._take_header, wire.OPTION_HEADER.size

    def _take_header(self, piece: bytes) -> None:
        magic, self._option, self._length = wire.OPTION_HEADER.unpack(piece)
        self._options += 1
        self._total += self._length
        reason = self._why_close(magic)
        if reason is not None:
            self._end(HandshakeState.CLOSED, reason)
            return
        if self._option == Opt.SET_META_CONTEXT:
            # An earlier choice is over, even where this option fails ("Option types").
            self._contexts = {}
        keep = self._option in _WITH_DATA and self._length <= self.limits.stored
        need, self._skip = (self._length, 0) if keep else (0, self._length)
        self._next, self._need = self._take_option, need

    def _why_close(self, magic: int) -> str | None:
        """Why an option's header is the end of the connection, None where it is not."""
        limits, length = self.limits, self._length
        if magic != wire.IHAVEOPT:
            return f"option has magic {magic:#x}"
        if self._option == Opt.EXPORT_NAME:
            # Knows no error replies, so that there is no answer to wait for.
            if self._tls_missing:
                return "asked for an export without TLS"
            if self._extended:
                return "asked for an export by NBD_OPT_EXPORT_NAME after extended headers"
            return f"export name has {length} bytes" if length > wire.MAX_STRING else None
        if not self._client_flags & ClientFlag.FIXED_NEWSTYLE:
            # It would not understand an error reply ("Newstyle negotiation").
            return f"option {self._option} from a client without fixed newstyle"
        if self._options > limits.options:
            return f"more than {limits.options} options"
        if length > limits.skipped or self._total > limits.total:
            return f"option {self._option} has {length} bytes, of {self._total} in all"
        if len(self._out) > limits.unsent:
            return "client does not wait for replies"
        return None

    @property
    def _tls_missing(self) -> bool:
        return self.tls is TlsMode.REQUIRE and not self._encrypted

    def _take_option(self, data: bytes) -> None:
        # First, so that the option may end it all.
        self._next, self._need = self._take_header, wire.OPTION_HEADER.size
        try:
            if self._tls_missing and self._option not in (Opt.STARTTLS, Opt.ABORT):
                raise OptionError(Rep.ERR_TLS_REQD, "this server wants TLS")
            if self._option not in _WITH_DATA:
                self._without_data()
            elif len(data) < self._length:
                raise OptionError(Rep.ERR_TOO_BIG, f"option has over {self.limits.stored} bytes")
            elif self._option == Opt.EXPORT_NAME:
                self._export_name(data)
            elif self._option in (Opt.INFO, Opt.GO):
                self._info(OptionData(data))
            else:
                self._meta_context(OptionData(data))
        except OptionError as error:
            if self._option == Opt.EXPORT_NAME:
                self._end(HandshakeState.CLOSED, str(error))
            else:
                self._reply(error.reply, str(error).encode())

    def _without_data(self) -> None:
        """Answer an option whose data, if there was any, has been passed over."""
        if self._option == Opt.ABORT:
            # Data is to be ignored here, not refused ("Option types").
            self._reply(Rep.ACK)
            self._end(HandshakeState.CLOSED)
        elif self._option == Opt.STARTTLS and self.tls is not TlsMode.OFF:
            self._start_tls()
        elif self._option not in _WITHOUT_DATA:
            # STARTTLS too, with data or without ("NOTLS mode").
            raise OptionError(Rep.ERR_UNSUP, f"option {self._option} is not supported")
        elif self._length:
            raise OptionError(Rep.ERR_INVALID, "option takes no data")
        elif self._option == Opt.LIST:
            self._list()
        else:
            self._choose_replies()

    def _choose_replies(self) -> None:
        if self._option == Opt.EXTENDED_HEADERS:
            self._extended = True
        elif self._extended:
            raise OptionError(Rep.ERR_EXT_HEADER_REQD, "extended headers are in force")
        else:
            self._structured = True
        self._reply(Rep.ACK)

    def _start_tls(self) -> None:
        if self._length:
            raise OptionError(Rep.ERR_INVALID, "option takes no data")
        if self._encrypted:
            raise OptionError(Rep.ERR_INVALID, "TLS has been started already")
        if self._in:
            # In the clear, and perhaps somebody else's: it may not count as if it were encrypted.
            self._end(HandshakeState.CLOSED, "sent more before TLS had started")
            return
        self._reply(Rep.ACK)
        self.state, self._next = HandshakeState.STARTING_TLS, None

    def _list(self) -> None:
        for export in self._catalog.list_exports():
            name = export.name.encode()
            self._reply(Rep.SERVER, wire.U32.pack(len(name)) + name + export.description.encode())
        self._reply(Rep.ACK)

    def _export_name(self, data: bytes) -> None:
        name = decode(data, "export name")
        export = self._find(name)
        self._out += wire.EXPORT_NAME_REPLY.pack(export.size, self._flags(name, export))
        if not self._client_flags & ClientFlag.NO_ZEROES:
            self._out += wire.EXPORT_NAME_ZEROES
        self._start(name, export)

    def _info(self, reader: OptionData) -> None:
        """INFO and GO: the same but for what a success leads to."""
        name = reader.string("export name")
        wanted = reader.shorts(reader.number(wire.U16))
        reader.end()
        export = self._find(name)
        flags = self._flags(name, export)
        self._reply(Rep.INFO, wire.INFO_EXPORT.pack(InfoType.EXPORT, export.size, flags))
        if InfoType.NAME in wanted:
            self._reply(Rep.INFO, wire.INFO_TYPE.pack(InfoType.NAME) + export.name.encode())
        if InfoType.DESCRIPTION in wanted and export.description:
            text = export.description.encode()
            self._reply(Rep.INFO, wire.INFO_TYPE.pack(InfoType.DESCRIPTION) + text)
        # Allowed unasked, and some clients heed the maximum without asking ("Option types").
        sizes = (export.block_min, export.block_preferred, export.block_max)
        self._reply(Rep.INFO, wire.INFO_BLOCK_SIZE.pack(InfoType.BLOCK_SIZE, *sizes))
        self._reply(Rep.ACK)
        if self._option == Opt.GO:
            self._start(name, export)

    def _meta_context(self, reader: OptionData) -> None:
        """LIST_META_CONTEXT and SET_META_CONTEXT ("Metadata querying")."""
        if not (self._structured or self._extended):
            raise OptionError(Rep.ERR_INVALID, "structured replies have to be negotiated first")
        name = reader.string("export name")
        count = reader.number(wire.U32)
        if count > reader.left() // wire.U32.size:
            raise OptionError(Rep.ERR_INVALID, "more queries than the option holds")
        if count > self.limits.queries:
            raise OptionError(Rep.ERR_TOO_BIG, f"more than {self.limits.queries} queries")
        queries = {reader.string("query") for _ in range(count)}
        reader.end()
        available = self._find(name).contexts
        if self._option == Opt.SET_META_CONTEXT:
            # Ids start at 1, so that they differ from the 0 of a list, which means nothing.
            replies = [(n, context) for n, context in enumerate(available, 1) if context in queries]
            self._contexts, self._context_name = dict(replies), name
        else:
            matching = (c for c in available if not count or any(_matches(q, c) for q in queries))
            replies = [(0, context) for context in matching]
        for number, context in replies:
            self._reply(Rep.META_CONTEXT, wire.U32.pack(number) + context.encode())
        self._reply(Rep.ACK)

    def _find(self, name: str) -> ExportInfo:
        export = self._catalog.find_export(name)
        if export is None:
            # Quoted, so without control characters, and short: fit for a log line and a reply.
            raise OptionError(Rep.ERR_UNKNOWN, f"there is no export {name[:64]!r}")
        return export

    def _chosen(self, name: str) -> dict[int, str]:
        """The contexts chosen; under another name they do not count ("Metadata querying")."""
        return dict(self._contexts) if name == self._context_name else {}

    def _flags(self, name: str, export: ExportInfo) -> int:
        """The export's flags, less those that its own or this client's choices rule out."""
        # As numbers: the complement of a flag would not have the bits that have no name.
        flags = export.transmission_flags | int(TransmissionFlag.HAS_FLAGS)
        if not (self._structured or self._extended):
            flags &= ~int(TransmissionFlag.SEND_DF)
        if not flags & TransmissionFlag.SEND_WRITE_ZEROES:
            flags &= ~int(TransmissionFlag.SEND_FAST_ZERO)
        flags &= ~int(TransmissionFlag.BLOCK_STATUS_PAYLOAD)
        if self._extended and self._chosen(name):
            flags |= TransmissionFlag.BLOCK_STATUS_PAYLOAD
        return int(flags)

    def _reply(self, reply: Rep, data: bytes = b"") -> None:
        header = wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, self._option, reply, len(data))
        self._out += header + data

    def _start(self, name: str, export: ExportInfo) -> None:
        """Enter transmission with `export`, which the client called `name`."""
        self.negotiated = Negotiated(
            export,
            self._flags(name, export),
            self._structured,
            self._chosen(name),
            self._extended,
        )
        self._end(HandshakeState.TRANSMISSION)

"""The data of an option, taken apart without believing any length in it."""

from __future__ import annotations

import struct

import attrs

from tapcore.nbd import constants as wire
from tapcore.nbd.constants import Rep


class OptionError(Exception):
    """An option that is answered with an error."""

    def __init__(self, reply: Rep, text: str) -> None:
        super().__init__(text)
        self.reply = reply


def decode(raw: bytes, what: str) -> str:
    """A string as a client may send it ("Conventions")."""
    if len(raw) > wire.MAX_STRING:
        raise OptionError(Rep.ERR_TOO_BIG, f"{what} has more than {wire.MAX_STRING} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise OptionError(Rep.ERR_INVALID, f"{what} is not UTF-8") from None
    if "\0" in text:
        raise OptionError(Rep.ERR_INVALID, f"{what} contains a NUL")
    return text


@attrs.define
class OptionData:
    """Reads an option's data from front to back; what does not fit raises ERR_INVALID.

    Attributes:
        data: all of it.
        at: where the next thing begins, bytes.
    """

    data: bytes
    at: int = 0

    def left(self) -> int:
        """Bytes."""
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        """So many bytes."""
        # Compared before it is used for anything: no length in here is ever an allocation.
        if size > self.left():
            raise OptionError(Rep.ERR_INVALID, "a length is more than the option holds")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: struct.Struct) -> int:
        """A number as it is packed."""
        return int(form.unpack(self.take(form.size))[0])

    def shorts(self, count: int) -> set[int]:
        """So many numbers of 16 bits."""
        return set(struct.unpack(f">{count}H", self.take(count * wire.U16.size)))

    def string(self, what: str) -> str:
        """A length and a text; `what` it is, for the error."""
        return decode(self.take(self.number(wire.U32)), what)

    def end(self) -> None:
        """Nothing may be left."""
        if self.left():
            raise OptionError(Rep.ERR_INVALID, "option is too long")

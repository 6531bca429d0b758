"""Which files it takes to open a disk: found by opening it for reading, with all that it names.

Whoever lends files to a confined process (`lent`) finds out in this way which those are, under the
policy of the disk, and before the process is heard. `noting` lets it hear of them.
"""

from __future__ import annotations

import os

import attrs

from tapcore.interface.identity import Identity, identity_of_open


@attrs.define
class Seen:
    """A file that was opened.

    Attributes:
        fd: of O_PATH: whatever becomes of its name, this one is meant.
        written: it would be written, if the disk were opened for that.
    """

    fd: int
    written: bool = False


@attrs.define
class Rehearsal:
    """What was seen.

    Attributes:
        files: by what they are.
    """

    files: dict[Identity, Seen] = attrs.field(factory=dict)

    def see(self, fd: int, *, written: bool) -> None:
        """A file was opened."""
        which = identity_of_open(fd)
        seen = self.files.get(which)
        if seen is None:
            handle = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            seen = self.files[which] = Seen(handle)
        seen.written |= written

    @property
    def own(self) -> list[str]:
        """Where those lie that are written."""
        written = [each.fd for each in self.files.values() if each.written]
        return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in written)

    def join(self, other: Rehearsal) -> None:
        """Take over what was seen there."""
        for which, seen in other.files.items():
            mine = self.files.setdefault(which, seen)
            if mine is not seen:
                mine.written |= seen.written
                os.close(seen.fd)
        other.files.clear()

    def close(self) -> None:
        """Give back the descriptors."""
        while self.files:
            os.close(self.files.popitem()[1].fd)

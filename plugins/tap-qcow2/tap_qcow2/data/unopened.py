"""What stands for an external data file that nobody needs: only tables are looked at, or made."""

from __future__ import annotations

import errno
from typing import NoReturn

from tapcore import ImageFile, ImageOpenError


class UnopenedFile(ImageFile):
    """Whoever needs it all the same gets an error: it is empty, and cannot be looked at."""

    def __init__(self) -> None:  # not super(): it opens and owns nothing
        self.path = ""
        self.fd = self.io_fd = -1
        self.size = self.in_flight = 0
        self.direct = False

    def look_again(self) -> NoReturn:
        """Raises ImageOpenError."""
        raise ImageOpenError("its data file was not opened", errno=errno.EBADF)

    def truncate_up(self, size: int) -> NoReturn:
        """The same."""
        self.look_again()

    def resize(self, size: int) -> NoReturn:
        """The same."""
        self.look_again()

    def flush_blocking(self) -> int:
        """Nothing was written."""
        return 0

    def submit(self) -> None:
        """Nothing is ever queued."""

    def drain(self) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """Nothing is open."""

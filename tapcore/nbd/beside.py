"""What an NBD server asks of another front end that serves the same disks."""

from __future__ import annotations

from typing import Protocol


class Beside(Protocol):
    """Another front end of the same disks, in the same loop: it ends with the server.

    Attributes:
        clients: how many are connected.
        busy: somebody is owed an answer.
        socket_files: paths of the sockets that it removes at its end.
    """

    @property
    def clients(self) -> int: ...

    @property
    def busy(self) -> bool: ...

    @property
    def socket_files(self) -> tuple[str, ...]: ...

    def stop(self) -> None:
        """Take no more clients and requests."""

    def close(self) -> None:
        """Drop everybody; what the engine has in hand it goes on with."""

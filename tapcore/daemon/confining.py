"""What a disk process gives up once its image is open."""

from __future__ import annotations

from typing import Any

import attrs

from tapcore.process.confinement import Confinement, User, confine


@attrs.frozen
class Confining:
    """How the processes of a daemon are confined.

    Attributes:
        wanted: they are.
        user: name of who they go on as; empty: who they are.
        pages: directory in which counters of disks lie; empty: there are none.
    """

    wanted: bool = True
    user: str = ""
    pages: str = ""

    def as_params(self) -> dict[str, Any]:
        """For the verb that opens a disk."""
        return {"confined": self.wanted, "user": self.user}

    def apply(self, *, shared: bool) -> None:
        """Keep the files that are open; what is opened later comes from a broker.

        Args:
            shared: other disks will be opened in this process, whose counters get files, too.

        Raises:
            TapError: there is no such user, or the kernel refuses.
        """
        user = User.named(self.user) if self.user else None
        pages = [self.pages] if shared and self.pages else []
        confine(Confinement(writable=pages, user=user))

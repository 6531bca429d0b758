"""A disk as the daemon sees it: what was asked for, where clients come, and how it is with it."""

from __future__ import annotations

import os
from typing import Any, Final

import attrs

from tapcore.daemon.brokers import Broker
from tapcore.daemon.processes import Process
from tapcore.daemon.spec import DiskSpec
from tapcore.errors import UsageError
from tapcore.nbd.listening import SocketFile, TcpAddress, UnixAddress, listen

STARTING: Final = "starting"
SERVING: Final = "serving"
RESTARTING: Final = "restarting"
CLOSING: Final = "closing"
FAILED: Final = "failed"
LOST: Final = "lost"


@attrs.define(eq=False)
class Disk:
    """One disk.

    Attributes:
        spec: with what it was attached.
        address: where clients find it.
        state: one of those above.
        process: that serves it; None: none does now.
        sockets: that listen there; they outlive its process.
        places: the files of those that are Unix sockets.
        reason: why it is not served.
        deaths: when its process died or could not begin, on the monotonic clock.
        restarts: how often it came back.
        last_lines: of the log of its process when that died last.
        facts: what its process told when it opened the image.
        committing: a commit goes on, as far as is known.
        broker: that lends to it; None: there is none, or a former daemon's.
    """

    spec: DiskSpec
    address: UnixAddress | TcpAddress
    state: str = STARTING
    process: Process | None = None
    sockets: tuple[int, ...] = ()
    places: list[SocketFile] = attrs.field(factory=list)
    reason: str = ""
    deaths: list[float] = attrs.field(factory=list)
    restarts: int = 0
    last_lines: tuple[str, ...] = ()
    facts: dict[str, Any] = attrs.field(factory=dict)
    committing: bool = False
    broker: Broker | None = None

    @property
    def name(self) -> str:
        """Of it."""
        return self.spec.name

    @property
    def uri(self) -> str:
        """For NBD clients."""
        return self.address.uri(self.name)

    def listen(self) -> None:
        """Let clients come; they wait until somebody serves them.

        Raises:
            UsageError: the address cannot be used.
        """
        sock = listen(self.address)
        if not isinstance(self.address, UnixAddress):
            port = sock.getsockname()[1]
            self.address = attrs.evolve(self.address, port=port)
            self.spec = attrs.evolve(self.spec, nbd=f"{self.address.host}:{port}")
        self.adopt((sock.detach(),))
        if self.spec.ring_address is not None:
            try:
                ring = listen(self.spec.ring_address)
            except UsageError:
                self.turn_away()
                raise
            self.adopt((*self.sockets, ring.detach()))

    def adopt(self, sockets: tuple[int, ...]) -> None:
        """Sockets that listen there already."""
        self.sockets = sockets
        addresses = (self.address, self.spec.ring_address)[: len(sockets)]
        self.places = [SocketFile(a.path) for a in addresses if isinstance(a, UnixAddress)]

    def let_go(self) -> None:
        """The daemon ends; who serves it goes on."""
        for each in self.sockets:
            os.close(each)
        self.sockets = ()

    def turn_away(self) -> None:
        """No more clients."""
        self.let_go()
        for place in self.places:
            place.remove()

    def as_dict(self) -> dict[str, Any]:
        """What there is to tell of it."""
        process = self.process
        return {
            "name": self.name,
            "image": self.spec.image,
            "directory": self.spec.directory,
            "handle": self.facts.get("handle"),
            "unrecognised": self.facts.get("unrecognised", False),
            "state": self.state,
            "reason": self.reason or None,
            "uri": self.uri,
            "ring": None if self.spec.ring_address is None else self.spec.ring_address.path,
            "pid": None if process is None else process.pid,
            "process": None if process is None else process.name,
            "read_only": self.facts.get("read_only", self.spec.read_only),
            "virtual_size": self.facts.get("virtual_size"),
            "clients": None,
            "restarts": self.restarts,
            "last_log": list(self.last_lines),
        }

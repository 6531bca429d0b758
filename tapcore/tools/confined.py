"""A server of disks that gives up what it does not need, once it is ready."""

from __future__ import annotations

import attrs

from tapcore.errors import TapError, describe
from tapcore.nbd.server import NbdServer
from tapcore.nbd.tlsoptions import TlsOptions
from tapcore.process.confinement import Confinement, User, confine
from tapcore.process.leftovers import Leftovers
from tapcore.tools.serve import Overlay


@attrs.define
class ConfinedServer:
    """Runs a server confined.

    Args:
        server: ready, and not running yet.
        overlay: as given to it.
        tls: as given to it: its files can be read again.
        user: who the process goes on as; None: who it is.
        files: what else is removed at its end.
    """

    server: NbdServer
    overlay: Overlay | None = None
    tls: TlsOptions | None = None
    user: User | None = None
    files: tuple[str, ...] = ()

    def run(self) -> None:
        """Confine this process, for good, and serve until stopped (main thread only).

        Raises:
            TapError: it cannot be confined, and the server was stopped; or as `NbdServer.run`.
        """
        leftovers: Leftovers | None = None
        try:
            leftovers = self._leftovers()
            confine(self._needs(), [self.server.renew_threads])
        except BaseException:
            self.server.stop()
            raise
        finally:
            try:
                self.server.run()
            finally:
                if leftovers is not None:
                    leftovers.remove()

    def _leftovers(self) -> Leftovers | None:
        files = [*self.server.socket_files, *self.files]
        try:
            return Leftovers(files) if files else None
        except OSError as exc:
            text = f"the server cannot be confined: {describe(exc)}"
            raise TapError(text, errno=exc.errno) from None

    def _needs(self) -> Confinement:
        written = [self.overlay.directory] if self.overlay and self.overlay.directory else []
        if self.overlay and self.overlay.keep:
            written.append(self.overlay.keep[1])
        tls = self.tls
        read = [] if tls is None else [each for each in (tls.certificates, tls.psk) if each]
        return Confinement(read, written, self.user)

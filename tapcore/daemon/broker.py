"""The broker: a process that opens files for a disk process, which may open none any more.

The daemon has it forked for one change of a disk, and tells it of which images (`Loan`). It opens
these for reading, under the policy with which the disk is attached, and so learns which files they
consist of; only those it lends, and for writing only those that such a disk writes. What the disk
process asks for says which of them it wants next, and nothing else: it may be in the hands of
whoever made its image.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import attrs

from tapcore.constants import TD_RDONLY
from tapcore.daemon.controlsocket import WithDescriptors
from tapcore.daemon.jsonrpc import MAX_REQUEST, RpcError, error_line, parse_call, result_line
from tapcore.daemon.loan import Loan, absolute_image, option_pairs
from tapcore.daemon.verbs import VerbTable
from tapcore.errors import TapError, describe, printable
from tapcore.files.byname import open_host_fd
from tapcore.files.noting import rehearsing
from tapcore.files.rehearsal import Rehearsal
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.identity import Identity, identity_of
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.registry import Registry, default_registry
from tapcore.live.snapshot import make_child
from tapcore.opening.chain import close_disk, open_disk
from tapcore.opening.namedfiles import identity_of_image
from tapcore.opening.names import split_below, split_name
from tapcore.opening.parents import recorded_parent
from tapcore.process.confinement import Confinement, confine

log = logging.getLogger(__name__)

_ALLOWED: Final = os.O_ACCMODE | os.O_DIRECT


class Broker:
    """Lends files to one disk process.

    Args:
        sock: to it: SOCK_SEQPACKET, one line of JSON-RPC a message.
        loan: of which images.
        teller: of the same kind, to the daemon, which hears what each image writes; None: nobody.
        registry: the drivers; None: the installed ones.
    """

    def __init__(
        self,
        sock: socket.socket,
        loan: Loan,
        *,
        teller: socket.socket | None = None,
        registry: Registry | None = None,
    ) -> None:
        self._socket = sock
        self._teller = teller
        self._loan = loan
        self._registry = registry or default_registry()
        self._passphrases = Rehearsal()
        self._seen = Rehearsal()
        self._parents: dict[Identity, DiskId] = {}
        self._made: tuple[str, Identity] | None = None
        self._old: tuple[DiskId, str] | None = None
        self._parent: tuple[DiskId, str] | None = None
        loan.spec.enter_directory()
        self._how = self._options()

    def _options(self) -> OpenOptions:
        spec = self._loan.spec
        with rehearsing(self._passphrases):
            access = spec.access()
        return OpenOptions(
            cache=spec.cache_mode,
            references=access.references,
            keys=access.keys,
            metadata_cache=spec.metadata_cache,
        )

    def confine(self) -> None:
        """Keep the directories of the images, and those where their parents may lie.

        Raises:
            TapError: the kernel refuses.
        """
        seen = self._passphrases.files.values()
        read = [os.readlink(f"/proc/self/fd/{each.fd}") for each in seen]
        confine(Confinement(read, self._homes()))

    def _homes(self) -> list[str]:
        spec, policy = self._loan.spec, self._how.references
        assert policy is not None
        if policy.any:
            return ["/"]
        names = [(spec.image, spec.directory)]
        names += [(n, self._loan.directory) for n in (self._loan.image, self._loan.child) if n]
        homes = list(policy.directories)
        for name, directory in names:
            with suppress(TapError):
                path = os.path.join(directory, _innermost(name, self._registry))
                homes.append(os.path.dirname(os.path.realpath(path)))
        return homes

    def serve(self) -> None:
        """Until nobody asks any more."""
        while line := self._socket.recv(MAX_REQUEST):
            descriptors: tuple[int, ...] = ()
            known = None
            try:
                call = parse_call(line)
                known = call.id
                result = BROKER_VERBS.find(call.method)(self, call.params)
                if isinstance(result, WithDescriptors):
                    result, descriptors = result.result, result.descriptors
                answer = result_line(known, result)
            except (OSError, RpcError) as exc:
                answer = error_line(known, exc)
            try:
                socket.send_fds(self._socket, [answer], descriptors)
            except OSError:
                return
            finally:
                for each in descriptors:
                    os.close(each)

    # ---- which files ------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out which files the images consist of now, and tell the daemon."""
        self._seen.close()
        self._parents.clear()
        loan, own = self._loan, {}
        images = {"old": (loan.spec.image, loan.spec.directory)}
        if loan.image:
            images["image"] = (loan.image, loan.directory)
        if self._made is not None:
            images["child"] = (self._made[0], "/")
        for part, (image, directory) in images.items():
            try:
                own[part] = self._rehearse(absolute_image(image, directory, self._registry), part)
                if part == "old" and loan.parent and self._parent is not None:
                    own["parent"] = self._rehearse(*self._parent)
            except TapError as exc:  # whoever opens it is told what is wrong
                log.info("%s", exc)
        if self._teller is not None:
            with suppress(OSError):  # it is told as early as it can be, and need not be again
                self._teller.send(json.dumps(own).encode(), socket.MSG_DONTWAIT)

    def _rehearse(self, image: str | DiskId, part: str) -> list[str]:
        """Open an image for reading; returns paths of the files that it would write."""
        seen = Rehearsal()
        try:
            with rehearsing(seen):
                self._open(image, part)
            if part == "old" and self._loan.spec.own is not None:
                self._take_back(seen, self._loan.spec.own)
            return seen.own
        finally:
            self._seen.join(seen)

    def _take_back(self, seen: Rehearsal, own: Iterable[str]) -> None:
        """What the image names by now, and did not when it was attached, is not written."""
        for each in seen.files.values():
            path = os.readlink(f"/proc/self/fd/{each.fd}")
            if each.written and path not in own:
                each.written = False
                text = "would write %s, which was no part of it when it was attached"
                log.warning("%s: " + text, self._loan.spec.name, printable(path))

    def _open(self, image: str | DiskId, part: str) -> None:
        spec, registry = self._loan.spec, self._registry
        given = image if isinstance(image, DiskId) else split_name(image, registry)
        if given.drivertype and _only_loads(registry.get(given.drivertype)):
            with suppress(TapError):  # such as the size of a disk in memory
                os.close(open_host_fd(given.name, os.O_RDONLY))
            return
        how = attrs.evolve(
            self._how, cache="writeback", locking=False, rehearsal=not spec.read_only
        )
        if part == "parent" and self._old is not None and how.references is not None:
            how = attrs.evolve(how, references=how.references.and_tree(self._old[1]))
        disk = open_disk(given, registry, flags=TD_RDONLY, options=how)
        try:
            for dd in disk.disks.chain():
                self._note_parent(dd)
            if part == "old":
                below = disk.disks.next
                self._old = disk.image, disk.home or ""
                self._parent = None if below is None else (_image_of(below), "parent")
        finally:
            close_disk(disk)

    def _note_parent(self, dd: DiskDriver) -> None:
        file, recorded = identity_of_image(dd), recorded_parent(dd)
        if file is not None and recorded is not None:
            self._parents[file] = recorded

    def _lend(self, file: Identity, flags: int) -> int:
        writing = bool(flags & os.O_ACCMODE)
        for look in (False, True):
            if look:
                self._look()
            seen = self._seen.files.get(file) or self._passphrases.files.get(file)
            if seen is not None and (seen.written or not writing):
                return os.open(f"/proc/self/fd/{seen.fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
        log.warning("a file that is none of the disk's was asked for")
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # ---- what can be asked for --------------------------------------------------------------

    def open(self, file: Identity, flags: int) -> WithDescriptors:
        """See `BROKER_VERBS`.

        Raises:
            OSError: it is none of the files, or the system refuses.
        """
        if flags & ~_ALLOWED:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return WithDescriptors(None, (self._lend(file, flags),))

    def parent_of(self, file: Identity) -> DiskId | None:
        """What an image of the disk records of its parent."""
        if file not in self._parents:
            self._look()
        return self._parents.get(file)

    def make(self) -> DiskId:
        """Make the child.

        Raises:
            TapError: there is none.
        """
        loan, registry = self._loan, self._registry
        if not loan.child or self._made is not None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._look()
        if self._old is None:  # then this says why
            self._open(absolute_image(loan.spec.image, loan.spec.directory, registry), "old")
        assert self._old is not None
        old, home = self._old
        child = absolute_image(loan.child, loan.directory, registry)
        options = option_pairs(loan.options)
        made = make_child(old, child, options, self._how, home, registry)
        self._made = str(made), identity_of(made.name) or (-1, -1)
        return made

    def unmake(self) -> None:
        """Remove what was made, if it is still there."""
        if self._made is None:
            return
        (name, which), self._made = self._made, None
        path = split_name(name, self._registry).name
        if identity_of(path) == which:
            os.unlink(path)


def _only_loads(info: DiskInfo) -> bool:
    """Whether a disk lies on no file, though it may be filled from one."""
    return not info.file_backed and info.words_before_image is None


def _image_of(dd: DiskDriver) -> DiskId:
    return DiskId(dd.name, dd.drv.disk_type)


def _innermost(name: str, registry: Registry) -> str:
    """The path of the file on which an image lies."""
    found = split_name(name, registry)
    while inner := split_below(found, registry):
        found = split_name(inner[1], registry)
    return found.name


def _identity(text: str) -> Identity:
    device, _, inode = text.partition(":")
    try:
        return int(device), int(inode)
    except ValueError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _open(broker: Broker, *, file: str, flags: int) -> WithDescriptors:
    """A descriptor of a file, which is one of the disk's."""
    return broker.open(_identity(file), flags)


def _closed(broker: Broker) -> None:
    """Nothing of what was handed out before is open here any more."""


def _parent(broker: Broker, *, file: str) -> dict[str, Any]:
    """What an image of the disk records of its parent."""
    found = broker.parent_of(_identity(file))
    return {} if found is None else {"name": found.name, "handle": found.drivertype}


def _make(broker: Broker) -> dict[str, Any]:
    """Make the child that was asked for."""
    made = broker.make()
    return {"name": made.name, "handle": made.drivertype}


def _unmake(broker: Broker) -> None:
    """Remove the child again."""
    broker.unmake()


BROKER_VERBS: Final[VerbTable[Broker]] = VerbTable(
    {"open": _open, "closed": _closed, "parent": _parent, "make": _make, "unmake": _unmake}
)


def be_a_broker(descriptor: int, teller: int, loan: Loan, *, confined: bool) -> None:
    """Lend until nobody asks any more (the main thread of a process of its own)."""
    with socket.socket(fileno=descriptor) as sock, socket.socket(fileno=teller) as daemon:
        try:
            broker = Broker(sock, loan, teller=daemon)
            if confined:
                broker.confine()
        except TapError as exc:
            log.error("nothing can be lent: %s", describe(exc))
            return
        broker.serve()

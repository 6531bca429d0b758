"""A child folded into its parent while it is served; afterwards the disk is the parent.

While this goes on the parent is open for writing, with an engine of its own; the child is complete
all the time, since whatever it holds shadows what the parent gets. At the end, when the parent has
all, it takes the child's place, and the child is emptied: so that it reads as its parent does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Any, Final, Literal, TypeAlias

import attrs

from tapcore.disk.calls import DiskCalls
from tapcore.engine import ZERO, Engine, chain_extents, engine_of
from tapcore.engine.loop import Loop
from tapcore.errors import NotSupportedError, TapError, UsageError
from tapcore.interface.hooks import lack_of
from tapcore.interface.identity import Identity
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.policy import ReferencePolicy
from tapcore.interface.registry import Registry
from tapcore.live.folding import Folding
from tapcore.live.pausing import close_old, told_of
from tapcore.live.pump import ParentPump
from tapcore.live.serveddisk import ServedDisk, check_place, flush
from tapcore.live.tasks import Steps, Until
from tapcore.opening.chain import close_disk, open_disk
from tapcore.opening.findparent import find_parent
from tapcore.opening.namedfiles import identity_of_image
from tapcore.opening.parents import check_fit, guessed_parent_error, recorded_parent
from tapcore.sizes import format_size

log = logging.getLogger(__name__)

FEW: Final = 8 << 20
"""Bytes that are left when clients are kept waiting for the rest."""

MOST_PASSES: Final = 10
"""Over what clients write meanwhile, before they are kept waiting for however much is left."""

Phase: TypeAlias = Literal["copying", "finishing", "done", "cancelled", "failed"]


@attrs.define(eq=False)
class Commit:
    """One commit, and how far it is.

    Attributes:
        disk: which is served.
        child: the image that it is.
        parent: the image into which it goes.
        recorded: that as the child records it.
        engine: of the parent.
        pump: what drives that.
        folding: what copies.
        phase: as the type says.
        emptied: the child holds nothing of its own any more.
        error: why it has failed.
        cancelled: somebody wants it to end.
    """

    disk: ServedDisk
    child: DiskId
    parent: DiskId
    recorded: DiskId
    engine: Engine
    pump: ParentPump
    folding: Folding
    phase: Phase = "copying"
    emptied: bool = False
    error: str = ""
    cancelled: bool = False
    began: float = attrs.field(factory=monotonic)
    ended: float | None = None

    def progress(self) -> dict[str, Any]:
        """How far it is: bytes, seconds, and bytes a second."""
        total, left = self.disk.engine.size, self.folding.marks.left
        seconds = (self.ended or monotonic()) - self.began
        told: dict[str, Any] = {
            "phase": self.phase,
            "child": str(self.child),
            "parent": str(self.parent),
            "total": total,
            "done": total - left,
            "copied": self.folding.copied,
            "seconds": round(seconds, 3),
            "rate": int(self.folding.copied / seconds) if seconds else 0,
        }
        if self.phase == "done":
            told["emptied"] = self.emptied
        if self.error:
            told["error"] = self.error
        return told

    def over(self, phase: Phase, error: str = "") -> None:
        """It has come to its end."""
        self.phase, self.error, self.ended = phase, error, monotonic()


def begin(disk: ServedDisk, others: Iterable[ServedDisk], loop: Loop) -> Steps[Commit]:
    """Open the parent of a disk for writing, under it.

    Args:
        disk: running, and open for writing.
        others: of the same process: whose chains must not have the parent in them.
        loop: in which the parent is polled.

    Raises:
        TapError: the disk goes on as before.
    """
    disk.must_run()
    disk.must_last()
    disk.must_be_writable()
    served = disk.engine.disk
    leaf, image, home = served.disks, disk.image, served.home or ""
    if leaf.next is None:
        raise UsageError("has no parent", image=str(image))
    _refuse_shared(leaf.next, disk, others)
    yield from disk.come_to_rest()
    yield from close_old(disk)
    preparing = partial(_open_pair, image, leaf.options, home, disk.registry)
    try:
        child, parent, recorded = yield from disk.tasks.in_thread(preparing)
    except Exception:
        yield from disk.open_again(image)
        raise
    engine = engine_of(parent)
    child.disks.next = parent.disks
    disk.attach(child)
    pump = ParentPump(loop, disk.engine, engine)
    folding = Folding(disk.engine, engine)
    disk.go_on()
    return Commit(disk, image, parent.image, recorded, engine, pump, folding)


def _refuse_shared(parent: DiskDriver, disk: ServedDisk, others: Iterable[ServedDisk]) -> None:
    identity: Identity | None = identity_of_image(parent)
    for other in others:
        if other is disk:
            continue
        if any(identity_of_image(dd) == identity for dd in other.engine.disk.disks.chain()):
            text = f"is a parent of '{other.name}' too, which would be spoilt"
            raise UsageError(text, image=parent.name)


def _open_pair(
    image: DiskId, options: OpenOptions, home: str, registry: Registry
) -> tuple[TdState, TdState, DiskId]:
    """In a thread: the child alone, its parent for writing, and what the child records of it."""
    options = attrs.evolve(options, bound=None, named_by=None, snapshot="")
    child = open_disk(image, registry, options=options, with_parents=False)
    parent: TdState | None = None
    try:
        dd = child.disks
        recorded = recorded_parent(dd)
        if recorded is None:
            raise UsageError("has no parent any more", image=dd.name)
        parent = _open_parent(dd, recorded, options, home, registry)
        check_fit(dd, parent.disks)
        check_place(engine_of(child), parent, size=False)
        _check_size(child, parent)
        dd.drv.td_before_commit(dd, parent.disks)
        if child.size > parent.size:
            _grow(parent, child.size << 9)
    except BaseException:
        with contextlib.suppress(TapError):
            close_disk(child)
        if parent is not None:
            with contextlib.suppress(TapError):
                close_disk(parent)
        raise
    return child, parent, recorded


def _open_parent(
    child: DiskDriver, recorded: DiskId, options: OpenOptions, home: str, registry: Registry
) -> TdState:
    found = find_parent(recorded, child, registry)
    if found.bound is None:
        text = f"its parent is a '{found.id.drivertype}' disk: only a file can be committed into"
        raise NotSupportedError(text, image=child.name)
    policy = (options.references or ReferencePolicy()).and_tree(home)
    options = attrs.evolve(options, references=policy, probed=found.probed)
    parent = open_disk(found.id, registry, options=options, bound=found.bound)
    if found.probed and parent.disks.next is not None:
        close_disk(parent)
        raise guessed_parent_error(parent.image.name)
    return parent


def _check_size(child: TdState, parent: TdState) -> None:
    leaf, more = parent.disks, (child.size - parent.size) << 9
    if more < 0:
        text = f"is larger than its child by {format_size(-more)}, and a served disk keeps its size"
        raise UsageError(text, image=leaf.name)
    if more and "td_resize" not in leaf.drv.implemented:
        lack = lack_of("td_resize", parent.image.drivertype)
        text = f"is smaller than its child by {format_size(more)}, and {lack}"
        raise NotSupportedError(text, image=leaf.name)


def _grow(parent: TdState, size: int) -> None:
    """A longer parent of its own must not show."""
    engine, calls, old = engine_of(parent), DiskCalls(parent, None), parent.size << 9
    with calls.driver(str(parent.image)) as dd:
        dd.drv.td_resize(dd, size)
    engine.refresh()
    for run in list(chain_extents(parent.disks, old, size - old)):
        if run.kind != "zero":
            calls.ask(ZERO, run.start, run.length, None)


# ---- its course ----------------------------------------------------------------------------------


def run(commit: Commit) -> Steps[dict[str, Any]]:
    """Copy, wait for what clients write meanwhile, and let the parent be the disk.

    Raises:
        TapError: it has failed, or was cancelled; child and parent are served as before.
    """
    disk, folding = commit.disk, commit.folding
    yield from _copy(commit, lambda: _few_are_left(folding))
    if not commit.cancelled and folding.failure is None:
        commit.phase = "finishing"
    disk.engine.hold()
    yield from _copy(commit, lambda: folding.done and disk.engine.idle)
    if commit.cancelled or folding.failure is not None:
        folding.give_up()
    yield Until(lambda: disk.engine.idle and commit.engine.idle and not folding.under_way)
    failure: TapError | None = None
    try:
        yield from flush(commit.engine)
    except TapError as exc:
        failure = exc
    failure = folding.failure or failure
    whole = failure is None and not commit.cancelled
    parent = yield from _take_apart(commit, whole=whole)
    if whole:
        try:
            yield from disk.announce(commit.parent)
        except TapError as exc:
            failure = exc
        else:
            disk.attach(parent)
            commit.over("done")
            disk.go_on()
            return told_of(disk) | commit.progress()
    yield from _give_up(commit, parent, failure)
    raise failure or UsageError("the commit was cancelled", image=disk.name)


def _copy(commit: Commit, enough: Callable[[], bool]) -> Steps[None]:
    folding = commit.folding
    while not enough() and folding.failure is None and not commit.cancelled:
        folding.go_on()
        yield Until(lambda: folding.can_go_on or commit.cancelled or enough())


def _few_are_left(folding: Folding) -> bool:
    if folding.done:
        return True
    return folding.passes > 0 and (folding.marks.left <= FEW or folding.passes >= MOST_PASSES)


def _take_apart(commit: Commit, *, whole: bool) -> Steps[TdState]:
    """Take the child out of the disk, which is at rest, and close it; returns the parent.

    Args:
        commit: whose.
        whole: the parent has all: the child is to be emptied.
    """
    disk = commit.disk
    commit.folding.stop_watching()
    parent = commit.engine.disk
    out = disk.detach()
    out.disks.next = None
    Engine(out)  # of the child alone
    commit.pump.stop()
    ending = partial(_close_child, out, parent, commit.recorded, empty=whole)
    try:
        commit.emptied = yield from disk.tasks.in_thread(ending)
    except TapError as exc:  # whatever it was, its content is in the parent, or it is complete
        log.error("%s: %s", commit.child, exc)
    return parent


def _close_child(child: TdState, parent: TdState, recorded: DiskId, *, empty: bool) -> bool:
    """In a thread; returns whether it was emptied."""
    dd = child.disks
    try:
        if not _fits(dd, parent.disks) and "td_set_parent" in dd.drv.implemented:
            dd.drv.td_set_parent(dd, recorded)  # what tells a changed parent is recorded anew
        empty = empty and "td_make_empty" in dd.drv.implemented
        if empty:
            dd.drv.td_make_empty(dd)
    finally:
        close_disk(child)
    return empty


def _fits(child: DiskDriver, parent: DiskDriver) -> bool:
    try:
        check_fit(child, parent)
    except TapError:
        return False
    return True


def _give_up(commit: Commit, parent: TdState, failure: TapError | None) -> Steps[None]:
    """The chain as it was, with its parent for reading only."""
    disk = commit.disk
    try:
        yield from disk.close(parent)
    except TapError as exc:
        log.error("%s", exc)
    yield from disk.open_again(commit.child)
    if failure is None:
        commit.over("cancelled")
    else:
        commit.over("failed", str(failure))

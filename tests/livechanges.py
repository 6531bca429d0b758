"""Changes of a disk that is served, drawn at random, and what its images have to be after each.

Who makes them may be a server's other thread, a daemon's client, or a test that takes each step.
What a kind of disk lacks is asked for as well: it has to be refused in one clear line.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs
import livekinds
from livekinds import Kind, path_of, run

import tapcore
from tapcore.interface.access import Access
from tapcore.interface.keys import Keys
from tapcore.tools.snapshots import create_snapshot, delete_snapshot

KIB, MIB = 1 << 10, 1 << 20


class Calls(Protocol):
    """As of `tapcore.live.LiveCalls`."""

    def state(self, name: str) -> dict[str, Any]: ...
    def pause(self, name: str) -> dict[str, Any]: ...
    def resume(self, name: str) -> dict[str, Any]: ...
    def swap(self, name: str, image: str) -> dict[str, Any]: ...
    def commit(self, name: str) -> dict[str, Any]: ...
    def begin_commit(self, name: str) -> dict[str, Any]: ...
    def commit_progress(self, name: str) -> dict[str, Any]: ...
    def cancel_commit(self, name: str) -> dict[str, Any]: ...
    def snapshot(
        self, name: str, child: str, *, options: Mapping[str, str] | None = None
    ) -> dict[str, Any]: ...
    def resize(self, name: str, size: str, *, shrink: bool = False) -> dict[str, Any]: ...


@attrs.define
class Image:
    """One of a chain: its name, how large it is, and its internal snapshots."""

    name: str
    size: int
    inner: list[str] = attrs.field(factory=list)


@attrs.define(eq=False)
class Changes:
    """The changes of one disk.

    Attributes:
        calls: make them.
        kind: of disk.
        folder: of its images.
        rng: for what is done.
        chain: its images, child first.
        least: bytes that it never becomes smaller than.
        most: that it never becomes larger than.
        resized: told of a new size, and of the one that it had, before it shrinks or when it has
            grown.
        wait: for a while that is a part (0 to 1) of what suits whoever makes the changes.
        number: of the last image.
        done: how often each was made, or refused.
        checks: of images.
    """

    calls: Calls
    kind: Kind
    folder: Path
    rng: random.Random
    chain: list[Image]
    least: int
    most: int
    resized: Callable[[int, int], object]
    wait: Callable[[float], object]
    number: int = 0
    done: Counter[str] = attrs.field(factory=Counter)
    checks: int = 0

    @property
    def image(self) -> Image:
        """Which is served."""
        return self.chain[0]

    @property
    def is_child(self) -> bool:
        return len(self.chain) > 1

    def change(self) -> str:
        """Make one at random; returns which."""
        kinds = ["pause", "swap", "grow", "grow", "shrink", "shrink", *["snapshot"] * 3]
        if self.is_child:
            kinds += [*["commit"] * 3, "cancel", "cancel"]
        if self.image.name.startswith("qcow2:"):
            kinds += ["inner"]
        kind = self.rng.choice(kinds)
        self.make(kind)
        return kind

    def make(self, kind: str) -> None:
        """Make one change."""
        getattr(self, f"_{kind}")()

    def _lacks(self, change: str, call: Callable[[], object]) -> bool:
        """Whether the kind lacks a change: then it was asked for, and refused clearly."""
        also = f"{change.removesuffix(' of a child')} with inner"
        pattern = self.kind.lacks.get(change)
        if pattern is None and self.image.inner:
            pattern = self.kind.lacks.get(also)
        if pattern is None:
            return False
        self._refused(change, pattern, call)
        return True

    def _refused(self, change: str, pattern: str, call: Callable[[], object]) -> None:
        before = self.calls.state("")
        try:
            call()
        except tapcore.TapError as exc:
            self._clear(str(exc), pattern)
        else:
            raise AssertionError(f"{change} was not refused")
        after = self.calls.state("")
        assert before == after, (before, after)
        self.done[f"{change} refused"] += 1

    @staticmethod
    def _clear(text: str, pattern: str) -> None:
        assert re.search(pattern, text), text
        assert len(text.splitlines()) == 1, text

    # ---- each -------------------------------------------------------------------------------

    def _pause(self) -> None:
        self.calls.pause("")
        self.check()
        self.wait(self.rng.random())
        self.calls.resume("")
        self.done["pause"] += 1

    def _inner(self) -> None:
        """An internal snapshot while it is paused, or one less: clusters are shared."""
        self.calls.pause("")
        image, access = self.image, Access(keys=self.keys)
        if self._lacks("inner", lambda: create_snapshot(image.name, "s", access=access)):
            self.calls.resume("")
            return
        if len(image.inner) < 2:
            name = f"s{self.number}-{self.done['inner']}"
            create_snapshot(image.name, name, access=access)
            image.inner.append(name)
        else:
            name = image.inner.pop(self.rng.randrange(2))
            delete_snapshot(image.name, name, access=access)
        self.check()
        self.calls.resume("")
        self.done["inner"] += 1

    def _grow(self) -> None:
        more = self.rng.choice([512, 64 * KIB, MIB, MIB + 512, 3 * MIB + 4096])
        more = -(-more // self.kind.unit) * self.kind.unit
        if self.image.size + more > self.most:
            self._shrink()
            return
        old = self.image.size
        change = "grow of a child" if self.is_child else "grow"
        if not self._lacks(change, lambda: self.calls.resize("", str(old + more))):
            told = self.calls.resize("", str(old + more))
            assert told["size"] == old + more, told
            self.image.size = old + more
            self.resized(old + more, old)
            self.done[change] += 1

    def _shrink(self) -> None:
        old = self.image.size
        least = self.least
        if self.is_child and self.kind.shows_longer_parent:
            least = max(least, self.chain[1].size)  # it could not grow again
        units = max(old - least, 0) // self.kind.unit
        new = old - self.rng.randint(0, units) * self.kind.unit
        if new == old:
            return
        change = "shrink of a child" if self.is_child else "shrink"

        def shrink() -> dict[str, Any]:
            return self.calls.resize("", str(new), shrink=True)

        if not self._lacks(change, shrink):
            self._refused(change, "--shrink allows it", lambda: self.calls.resize("", str(new)))
            self.resized(new, old)
            told = shrink()
            assert told["size"] == new, told
            self.image.size = new
            self.done[change] += 1

    def _snapshot(self) -> None:
        change = "snapshot of a child" if self.is_child else "snapshot"
        if len(self.chain) >= self.kind.longest and change not in self.kind.lacks:
            return
        child = self._new(child=True)
        options = livekinds.options_of(self.kind, child, child=True)

        def snapshot() -> dict[str, Any]:
            return self.calls.snapshot("", child, options=options)

        if not self._lacks(change, snapshot):
            told = snapshot()
            assert told["image"] == child, told
            self.chain.insert(0, Image(child, self.image.size))
            self.done[change] += 1

    def _commit(self) -> None:
        if self._cannot_commit():
            return
        told = self.calls.commit("")
        assert path_of(told["image"]) == path_of(self.chain[1].name), told
        self._committed()
        self.done["commit"] += 1

    def _cannot_commit(self) -> bool:
        if len(self.chain) == 2 and self._lacks(
            "commit into the first", lambda: self.calls.commit("")
        ):
            return True
        if self.chain[1].size <= self.image.size:
            return False
        self._refused("commit of a smaller child", "larger than its child", self._to_commit)
        return True

    def _to_commit(self) -> None:
        self.calls.commit("")

    def _committed(self) -> None:
        gone = self.chain.pop(0)
        self.image.size = gone.size
        if self.rng.random() < 0.3:
            livekinds.check(self.kind, gone.name, child=True, in_use=True)  # it was emptied
        self._remove(gone)

    def _cancel(self) -> None:
        """A commit, at a random moment; it may have ended before."""
        if self._cannot_commit():
            return
        self.calls.begin_commit("")
        self.wait(self.rng.random())
        try:
            self.calls.cancel_commit("")
        except tapcore.TapError as exc:
            if "done" not in str(exc):
                raise
        while (told := self.calls.commit_progress(""))["phase"] in ("copying", "finishing"):
            self.wait(0.1)
        if told["phase"] == "done":
            self._committed()
            self.done["cancelled too late"] += 1
            return
        assert told["phase"] == "cancelled", told
        # the parent may have grown for it
        self.chain[1].size = max(self.chain[1].size, self.image.size)
        self.done["cancel"] += 1

    def _swap(self) -> None:
        """For a copy of the whole that is made while nothing is open."""
        self.calls.pause("")
        copy = self._new(child=False)
        maker = self._copied_by_tapdisk
        alone = not self.is_child or self.kind.chains_in_qemu
        if self.kind.made_by_qemu and alone:
            maker = self.rng.choice([maker, self._copied_by_qemu])
        try:
            maker(copy)
        except tapcore.TapError as exc:
            self._clear(str(exc), self.kind.lacks.get("swap", "nothing"))
            self.calls.resume("")
            self.done["swap refused"] += 1
            return
        livekinds.check(self.kind, copy, child=False)
        if self.is_child and self._lacks("swap of a child", lambda: self.calls.swap("", copy)):
            self.calls.resume("")
            return
        told = self.calls.swap("", copy)
        assert told["image"] == copy, told
        for each in self.chain:
            self._remove(each)
        self.chain = [Image(copy, self.image.size)]
        self.done["swap"] += 1

    def _copied_by_tapdisk(self, copy: str) -> None:
        options = livekinds.options_of(self.kind, copy, child=False)
        tapcore.convert_image(self.image.name, copy, options=options, keys=self.keys)

    @property
    def keys(self) -> Keys | None:
        return livekinds.keys(self.kind)

    def _copied_by_qemu(self, copy: str) -> None:
        options = livekinds.options_of(self.kind, copy, child=False)
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        form = ["-f", self.kind.handle, "-O", self.kind.handle]
        run("qemu-img", "convert", *form, *words, path_of(self.image.name), path_of(copy))

    # ---- images -----------------------------------------------------------------------------

    def _new(self, *, child: bool) -> str:
        self.number += 1
        return livekinds.new_name(self.kind, self.folder, self.number, child=child)

    @staticmethod
    def _remove(image: Image) -> None:
        path = Path(path_of(image.name))
        for each in path.parent.glob(f"{path.stem}[.-]*"):
            each.unlink()

    def check(self) -> None:
        """All images of the chain, which nobody has open."""
        for image in self.chain:
            livekinds.check(self.kind, image.name, child=image is not self.chain[-1])
            self.checks += 1

    def fold(self) -> None:
        """As far as it goes: one image without a parent, where the kind can."""
        while self.is_child and not (
            len(self.chain) == 2 and "commit into the first" in self.kind.lacks
        ):
            if self.chain[1].size > self.image.size:
                old = self.image.size
                self.calls.resize("", str(self.chain[1].size))
                self.image.size = self.chain[1].size
                self.resized(self.image.size, old)
            self._commit()

"""Checks on bad input: what a stranger's file says is refused, or harmless; it never hangs."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

from tapcore.constants import TD_RDONLY
from tapcore.engine import Engine
from tapcore.errors import TapError
from tapcore.interface.magic import HEAD_BYTES, TAIL_BYTES
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.opening.probe import recognises
from tapcore.testkit.damage import Damage
from tapcore.testkit.extents import extents_of
from tapcore.testkit.failing import broken, compare, memory_mib, nothing_left_open, within
from tapcore.testkit.needs import needs
from tapcore.testkit.session import Session
from tapcore.testkit.subject import Subject

_FIELDS = (1, 2, 4, 8)
_AT_MOST_PADDING = 64 << 10
"""Bytes of a file's end that may never have been written: the rest of its last cluster."""


class StrangerChecks(Subject):
    """Files that are damaged, cut short, empty, or something else altogether."""

    @needs("read", "file")
    def test_bad_files_are_refused_or_harmless(self, rng: random.Random) -> None:
        """TapError or OSError are the ways to refuse one; nothing leaks, hangs or swells."""
        good = self._good(rng)
        self._look(good, "an undamaged image")  # one-time costs
        with nothing_left_open("opening bad files"):
            for number, (what, content) in enumerate(self._bad(good, rng)):
                before = memory_mib()
                path = os.path.join(self.folder, "bad")
                with open(path, "wb") as file:
                    file.write(content)
                with within(self.time_limit, f"{what} (number {number})"):
                    self._look(path, what)
                took = memory_mib("VmHWM:") - before
                if took > self.memory_limit:
                    broken(f"{what}: took {took} MiB of memory, for {len(content)} bytes of file")

    @needs("read", "file", "format")
    def test_what_is_cut_off_is_missed(self, rng: random.Random) -> None:
        """Of a file that has become shorter nothing is made up: it is refused, or reads fail."""
        good, content = self.filled(rng, whole=True)
        with open(good, "rb") as file:
            whole = file.read()
        path = os.path.join(self.folder, "short")
        for tenths in range(2, 9, 2):
            with open(path, "wb") as file:
                file.write(whole[: len(whole) * tenths // 10])
            with within(self.time_limit, f"an image of which {tenths} tenths are left"):
                got, unit = self._left_of(path)
            lost = len(whole) - len(whole) * tenths // 10
            if got is not None and got != content and lost > max(unit, _AT_MOST_PADDING):
                compare(got, content, 0, f"an image of which {tenths} tenths are left, and no word")

    def _left_of(self, path: str) -> tuple[bytes | None, int]:
        """What can be read of it, if all can; and its unit of allocation."""
        try:
            with self.open(path, readonly=True) as disk:
                dd = disk.state.disks
                return disk.pread(0, length=disk.size), max(dd.sector_size, dd.cluster_size)
        except (TapError, OSError):
            return None, 0

    @needs("recognised", "file")
    def test_probing_looks_at_anything(self, rng: random.Random) -> None:
        """Only its own images are recognised, and no head of a file makes it raise."""
        good = self._good(rng)
        info = self.info()
        head, tail = _ends(good)
        if not recognises(info, good, head, tail):
            broken("the format does not recognise an image of its own, by magic or td_probe")
        for what, other in (
            ("an empty file", b""),
            ("zeroes", bytes(64 << 10)),
            ("random bytes", rng.randbytes(64 << 10)),
        ):
            for suffix in ("", *info.suffixes):
                if recognises(info, f"image{suffix}", other, other[-TAIL_BYTES:]):
                    broken(f"td_probe takes {what} for an image (of the name image{suffix})")
        if "td_probe" in self.operations().implemented:
            self._probe_short(head)

    def _probe_short(self, head: bytes) -> None:
        for length in (1, 3, 4, 7, 8, 16, 100, 511):
            try:
                self.operations().td_probe("image", head[:length], head[:length])
            except Exception as exc:
                broken(f"td_probe of the first {length} bytes raised {_said(exc)}")

    @needs("td_inspect", "file")
    def test_inspecting_is_safe(self, rng: random.Random) -> None:
        """It tells a good image's size; of a bad one it says so with an ImageFormatError."""
        good = self._good(rng)
        inspection = self._inspect(good, "an undamaged image")
        if inspection != self.small:
            broken(f"td_inspect says {inspection} bytes of an image of {self.small}")
        if {"parents", "write"} <= {*self.info().capabilities}:
            self._inspect_a_child(good)
        path = os.path.join(self.folder, "bad")
        for what, content in self._bad(good, rng):
            with open(path, "wb") as file:
                file.write(content)
            with within(self.time_limit, f"td_inspect of {what}"):
                self._inspect(path, what)

    def _inspect_a_child(self, parent: str) -> None:
        """What leads a stranger's image to another file has to be told."""
        child, name = self.make_child(parent, None), os.path.basename(parent)
        with open(child, "rb") as file:
            content = file.read()
        if not any(name.encode(code) in content for code in ("utf-8", "utf-16-le", "utf-16-be")):
            return  # the format has other ways to find a parent than its name
        fd = os.open(child, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = self.operations().td_inspect(child, fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        if not any(named.endswith(name) for _, named in found.references):
            broken(f"td_inspect of a child names {found.references or 'no file'}, not its parent")

    def _inspect(self, path: str, what: str) -> int | None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            inspection = self.operations().td_inspect(path, fd, os.fstat(fd).st_size)
            size: int = inspection.virtual_size
            return size
        except (TapError, OSError):
            return None
        except Exception as exc:
            broken(f"td_inspect of {what} raised {_said(exc)}, not a TapError")
        finally:
            os.close(fd)

    # ---- one file ---------------------------------------------------------------------------

    def _look(self, path: str, what: str) -> None:
        """Open, look around and close, by the hooks themselves."""
        drv = self.operations()
        state = TdState(image=DiskId(path, self.handle))
        dd = DiskDriver(name=path, drv=drv, flags=TD_RDONLY, td_state=state, options=OpenOptions())
        try:
            drv.td_open(dd, path, TD_RDONLY)
        except (TapError, OSError):
            return
        except Exception as exc:
            broken(f"td_open of {what} raised {_said(exc)}, not a TapError or OSError")
        try:
            self._look_around(dd, state, what)
        except (TapError, OSError):
            pass
        except Exception as exc:
            broken(f"a hook called on {what} raised {_said(exc)}, not a TapError or OSError")
        finally:
            drv.td_close(dd)

    def _look_around(self, dd: DiskDriver, state: TdState, what: str) -> None:
        unit = dd.sector_size
        if not 0 <= dd.size < 1 << 54 or unit < 512 or unit & (unit - 1) or unit > 1 << 20:
            return  # the core refuses these numbers
        state.disks = dd
        Engine(state)
        session = Session(state, patience=self.patience, errors=True)
        dd.drv.td_get_parent_id(dd, DiskId(""))
        dd.drv.td_info(dd)
        if not dd.size:
            return
        with contextlib.suppress(TapError, OSError):
            extents_of(dd, 0, min(dd.size, 1 << 22))
        step = session.unit
        for sector in {0, dd.size // 2 // step * step, (dd.size - 1) // step * step}:
            session.read(sector, min(step, dd.size - sector))
            session.finish()

    # ---- what is tried ----------------------------------------------------------------------

    def _good(self, rng: random.Random) -> str:
        image = self.make_image(self.small)
        if "write" in self.info().capabilities:
            with self.open(image) as disk:
                for _ in range(4):
                    disk.pwrite(rng.randrange(max(disk.size - 600, 1)), rng.randbytes(300))
        return image

    def _bad(self, good: str, rng: random.Random) -> Iterator[tuple[str, bytes]]:
        with open(good, "rb") as file:
            content = file.read()
        yield "an empty file", b""
        yield "one byte", b"\0"
        yield "random bytes", rng.randbytes(100_000)
        yield "zeroes", bytes(100_000)
        for _ in range(20):
            length = min(rng.randrange(rng.choice((600, 5000, 1 << 30))), len(content) - 1)
            yield f"an image cut off after {length} bytes", content[:length]
        if self.any_file:
            return
        aimed = Damage.between(self, good, list(self._others()))
        for number in range(self.damages):
            damaged = bytearray(content)
            way = aimed.aimed if number % 2 and aimed.runs else self._damage
            said = [way(damaged, rng) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
            yield f"an image with {', '.join(said)}", bytes(damaged)

    def _others(self) -> Iterator[str]:
        """Images that differ from the good one in their content, and in their size."""
        yield self.make_image(self.small, "other")
        with contextlib.suppress(TapError, OSError):  # perhaps too large for the format
            yield self.make_image(2 * self.small, "larger")

    def _damage(self, content: bytearray, rng: random.Random) -> str:
        """Change one field; half of them where headers tend to have theirs."""
        width = rng.choice(_FIELDS)
        reach = min(self.header if rng.random() < 0.5 else 128, len(content) - width)
        offset = rng.randrange(max(reach, 1)) // width * width
        if rng.random() < 0.3:  # some formats have their header at the end
            back = rng.choice((24, 64, 512))
            offset = max(len(content) - back + offset % back, 0)
        value = rng.choice(
            (
                bytes(width),
                b"\xff" * width,
                b"\x7f" + b"\xff" * (width - 1),
                (1).to_bytes(width, "big"),
                (1).to_bytes(width, "little"),
                rng.randbytes(width),
            )
        )
        content[offset : offset + width] = value
        return f"{value.hex()} at offset {offset}"


def _ends(path: str) -> tuple[bytes, bytes]:
    """What of a file the drivers are shown."""
    with open(path, "rb") as file:
        content = file.read()
    return content[:HEAD_BYTES], content[-TAIL_BYTES:]


def _said(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"

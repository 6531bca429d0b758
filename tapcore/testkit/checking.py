"""Checks on `td_check`: it sees what is wrong, cries no wolf, and writes only to repair."""

from __future__ import annotations

import os
import random

from tapcore.errors import TapError
from tapcore.interface.results import CheckResult
from tapcore.testkit.damage import Damage
from tapcore.testkit.failing import broken, compare
from tapcore.testkit.needs import left_out, needs
from tapcore.testkit.subject import Subject
from tapcore.tools.check import Repair, check_image

_ENOUGH = 4
_REPAIRS = 6


class CheckChecks(Subject):
    """What `tapdisk check` does with good images, and with damaged ones."""

    def _checked(self, image: str, repair: Repair = "") -> CheckResult:
        return check_image(f"{self.handle}:{image}", repair=repair, access=self.access())

    @needs("check", "read", "file")
    def test_checking_a_good_image(self, rng: random.Random) -> None:
        """Nothing is wrong with it, and nothing is written to it."""
        image, _ = self.filled(rng)
        before = self._files_and_times(image)
        result = self._checked(image)
        if result.corruptions or result.check_errors:
            broken(f"td_check of a good image: {'; '.join(result.messages) or result}")
        if self._files_and_times(image) != before:
            broken("td_check has written to the image, without being asked to repair it")

    def _files_and_times(self, image: str) -> dict[str, tuple[bytes, int]]:
        contents = self.snapshot(image)
        return {path: (data, os.stat(path).st_mtime_ns) for path, data in contents.items()}

    @needs("check", "write", "file", "lasting")
    def test_repairing_keeps_the_content(self, rng: random.Random) -> None:
        """Leaks are given back, and whatever else; the disk reads as before."""
        image, _ = self.filled(rng)
        with self.open(image) as disk:
            disk.discard(disk.size // 3, length=disk.size // 3)
            content = disk.pread(0, length=disk.size)
        repairs: tuple[Repair, ...] = ("leaks", "all")
        for repair in repairs:
            result = self._checked(image, repair)
            if result.corruptions or result.corruptions_fixed or result.check_errors:
                broken(f"td_check, asked to repair {repair} of a good image: {result}")
            with self.open(image, readonly=True) as disk:
                compare(disk.pread(0, length=disk.size), content, 0, f"after a repair of {repair}")

    @needs("check", "write", "file", "lasting", "format")
    def test_checking_is_not_blind(self, rng: random.Random) -> None:
        """Of damage to metadata that changes what is read, it has to find a part."""
        image, content = self.filled(rng)
        damage = Damage.between(self, image, [self.make_image(self.small, "empty")])
        if damage.packed or not damage.runs:
            left_out("metadata cannot be told from content in these images")
        harmful = found = 0
        for number in range(24):
            bad = damage.write(os.path.join(self.folder, "bad"), rng)
            if self._reads_as(bad, content):
                continue
            harmful += 1
            found += self._is_told(bad)
            if number >= _ENOUGH and found:
                return
        if harmful >= _ENOUGH and not found:
            broken(f"td_check found nothing in {harmful} images of which the content was damaged")

    @needs("check", "write", "file", "lasting", "format")
    def test_what_was_repaired_is_right(self, rng: random.Random) -> None:
        """What `td_check` says to have repaired, the next check does not find."""
        image, _ = self.filled(rng)
        damage = Damage.between(self, image, [self.make_image(self.small, "empty")])
        if damage.packed or not damage.runs:
            left_out("metadata cannot be told from content in these images")
        for _ in range(_REPAIRS):
            bad = damage.write(os.path.join(self.folder, "bad"), rng)
            try:
                repaired = self._checked(bad, "all")
            except (TapError, OSError):
                continue  # it may be beyond repair
            if repaired.corruptions or repaired.check_errors:
                continue
            try:
                again = self._checked(bad)
            except (TapError, OSError) as exc:
                broken(f"td_check left nothing to repair, and then the image is refused: {exc}")
            if again.corruptions or again.check_errors:
                found = "; ".join(again.messages) or str(again)
                broken(f"td_check said that it had repaired all, and then finds: {found}")

    def _reads_as(self, image: str, content: bytes) -> bool:
        try:
            with self.open(image, readonly=True) as disk:
                return disk.pread(0, length=disk.size) == content
        except (TapError, OSError):
            return False

    def _is_told(self, image: str) -> bool:
        try:
            result = self._checked(image)
        except (TapError, OSError):
            return True
        return bool(result.corruptions or result.check_errors)

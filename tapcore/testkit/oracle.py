"""Checks against QEMU, for formats that it has: its images open here, and those from here there."""

from __future__ import annotations

import os
import random
import shutil
import subprocess

from tapcore.testkit.failing import broken, compare
from tapcore.testkit.needs import left_out, needs
from tapcore.testkit.subject import Subject

_NO_CHECK = 63
"""What `qemu-img check` returns for a format that it cannot check."""


class OracleChecks(Subject):
    """Both directions, by `qemu-img`; left out where that is not installed."""

    @needs("qemu", "write", "file", "lasting")
    def test_qemu_reads_what_was_written_here(self, rng: random.Random) -> None:
        """And finds nothing wrong with it."""
        image, content = self.filled(rng)
        self._compare_with_qemu(image, content, "an image that was written here, as QEMU reads it")

    @needs("qemu", "read", "file")
    def test_what_qemu_wrote_is_read_here(self, rng: random.Random) -> None:
        """And, where the driver can write, written to, and read by QEMU again."""
        content = bytearray(self.small)
        for _ in range(5):
            at = rng.randrange(self.small)
            content[at : at + 9000] = rng.randbytes(min(9000, self.small - at))
        raw, image = os.path.join(self.folder, "raw"), os.path.join(self.folder, "image")
        with open(raw, "wb") as file:
            file.write(content)
        self._qemu_img("convert", "-f", "raw", "-O", self.qemu_format, raw, image)
        with self.open(image, readonly=True) as disk:
            want = bytes(content).ljust(disk.size, b"\0")  # some formats round sizes up
            compare(disk.pread(0, length=disk.size), want, 0, "an image that QEMU made")
        if "write" not in self.info().capabilities:
            return
        after = bytearray(want)
        with self.open(image) as disk:
            for _ in range(5):
                at = rng.randrange(disk.size)
                piece = rng.randbytes(min(7000, disk.size - at))
                disk.pwrite(at, piece)
                after[at : at + len(piece)] = piece
        self._compare_with_qemu(image, bytes(after), "an image of QEMU's that was written to here")

    def _compare_with_qemu(self, image: str, content: bytes, what: str) -> None:
        done = self._qemu_img("check", "-f", self.qemu_format, image, check=False)
        if done.returncode not in (0, _NO_CHECK):
            broken(f"{what}: qemu-img check: {done.stdout}{done.stderr}")
        out = os.path.join(self.folder, "out")
        self._qemu_img("convert", "-f", self.qemu_format, "-O", "raw", image, out)
        with open(out, "rb") as file:
            compare(file.read(), content, 0, what)

    @staticmethod
    def _qemu_img(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = shutil.which("qemu-img")
        if program is None:
            left_out("qemu-img is not installed")
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        if check and done.returncode:
            broken(f"qemu-img {' '.join(words)}: {done.stderr.strip()}")
        return done

"""Conversions over an old target that a signal ends at a chosen moment, many in a short time.

`python tests/killedcopies.py FOLDER KIND|every SEED MOMENTS|all` prints a line of JSON for each
kind, and before it one for each moment after which something is wrong. A moment is a call of the
system that changes something, counted from the start of the conversion; the last is one that never
comes. Each conversion runs in a fork of a process that has imported everything, so that it takes
hundredths of a second.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

import tapcore
from tapcore.cli.main import main

MIB: Final = 1 << 20
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
KINDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "aio": ("aio:t.img", ()),
    "sync": ("sync:t.img", ("-o", "preallocation=falloc")),
    "toy": ("toy:t.toy", ()),
    "qcow": ("t.qcow", ()),
    "qcow-c": ("t.qcow", ("-c",)),
    "qcow2": ("t.qcow2", ()),
    "qcow2-c": ("t.qcow2", ("-c",)),
    "qcow2-metadata": ("t.qcow2", ("-o", "preallocation=metadata")),
    "qcow2-child": ("t.qcow2", ("-b", "qcow2:../base.qcow2", "--parents", "any")),
    "qcow2-data": ("t.qcow2", ("-o", "data_file=t.data")),
    "qcow2-raw-data": ("t.qcow2", ("-o", "data_file=t.data", "-o", "data_file_raw=on")),
    "monolithicSparse": ("t.vmdk", ("-o", "subformat=monolithicSparse")),
    "monolithicFlat": ("t.vmdk", ("-o", "subformat=monolithicFlat")),
    "twoGbMaxExtentSparse": ("t.vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
    "twoGbMaxExtentFlat": ("t.vmdk", ("-o", "subformat=twoGbMaxExtentFlat")),
    "streamOptimized": ("t.vmdk", ("-o", "subformat=streamOptimized")),
}

_CHANGING: Final = (
    "open",
    "link",
    "rename",
    "unlink",
    "chmod",
    "chown",
    "setxattr",
    "ftruncate",
    "posix_fallocate",
    "pwrite",
    "pwritev",
    "fsync",
    "fdatasync",
    "fork",
    "setsid",
)


@attrs.define
class Ending:
    """What a conversion came to.

    Attributes:
        status: of its process, as `subprocess` gives it.
        text: what it said.
        found: "old", "new", or what is wrong.
        files: in the directory.
    """

    status: int
    text: str
    found: str
    files: list[str]


class Trials:
    """Conversions of one kind in one folder.

    Args:
        folder: to be filled.
        kind: of `KINDS`.
        rng: for the content.
    """

    def __init__(self, folder: Path, kind: str, rng: random.Random) -> None:
        self.target, self.options = KINDS[kind]
        self.old_only = folder / "old"
        self.old_only.mkdir()
        self.folder = folder / "now"
        for name, size in (("old.raw", 2 * MIB), ("new.raw", 3 * MIB)):
            (folder / name).write_bytes(rng.randbytes(size // 2) + bytes(size - size // 2))
        os.chdir(self.old_only)
        assert not main(["create", "-q", "qcow2:../base.qcow2", "3M"])
        assert not main(self._command("old"))
        self.names = sorted(os.listdir())
        self.contents = {self._content(): "old"}
        assert self._run("new", 0, signal.SIGKILL).status == 0
        self.contents[self._content()] = "new"
        assert len(self.contents) == 2

    def _command(self, which: str) -> list[str]:
        source = f"aio:../{which}.raw"
        return ["convert", "-q", "--force", source, self.target, *self.options]

    def _content(self) -> bytes:
        """A digest of what the target reads as; empty where it is none."""
        try:
            with tapcore.open(self.target, readonly=True, parents="any") as disk:
                return hashlib.sha256(disk.readall()).digest()
        except tapcore.TapError:
            return b""

    def try_at(self, moment: int, signum: signal.Signals) -> Ending:
        """Convert over the old target, with a signal at a moment; 0: never."""
        ending = self._run("new", moment, signum)
        ending.found = self.contents.get(self._content(), "no image, or one that is not whole")
        return ending

    def moments(self) -> int:
        """How many there are."""
        read, write = os.pipe()
        self._run("new", -write, signal.SIGKILL)
        os.close(write)
        with os.fdopen(read, "rb") as counted:
            return len(counted.read())

    def _run(self, which: str, moment: int, signum: signal.Signals) -> Ending:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.old_only, self.folder)
        os.chdir(self.folder)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            _convert(self._command(which), moment, signum, write)
        os.close(write)
        with os.fdopen(read, "rb") as output:  # ends when every process of it has
            text = output.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ending(status, text, "", sorted(os.listdir()))


def _convert(command: list[str], moment: int, signum: signal.Signals, output: int) -> None:
    """In a process of its own: convert, and be ended at a moment."""
    try:
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _count_calls(moment, signum)
        status = main(command)
        sys.stderr.flush()
    finally:
        os._exit(status)


def _count_calls(moment: int, signum: signal.Signals) -> None:
    own, left = os.getpid(), [moment]

    def counting(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if moment < 0:
                _really_write(-moment, b".")
            left[0] -= 1
            if left[0] == 0:
                os.kill(own, signum)
                if signum == signal.SIGKILL:  # from the child that places files: let it happen
                    while os.getpid() != own and os.getppid() == own:
                        pass
            return real(*arguments, **named)

        return call

    for name in _CHANGING:
        setattr(os, name, counting(getattr(os, name)))


_really_write: Final = os.write


def wrong(trials: Trials, ending: Ending, signum: signal.Signals) -> str:
    """What is not as it must be; empty where all is."""
    left = ending.files
    if trials.target.startswith("toy:") and signum == signal.SIGKILL:
        # its driver opens files in its own way, so they have a name, which the next run removes
        left = [name for name in left if not name.startswith(".tapdisk-")]
    if left != trials.names:
        return "something else is left"
    if ending.found not in ("old", "new"):
        return ending.found
    done = f"tapdisk: stopped by {signum.name}, with the work done\n"
    said = {0: [""], -signum: [""], 128 + signum: [f"tapdisk: stopped by {signum.name}\n", done]}
    if ending.status not in said or ending.text not in said[ending.status]:
        return "it does not end as it should"
    if (ending.status == 0 or ending.text == done) and ending.found != "new":
        return "it says that it is done"
    return ""


def results(folder: Path, kind: str, seed: str, wanted: str) -> Iterator[dict[str, Any]]:
    """Try moments, each with a signal by chance; all of them with each signal where `all`."""
    rng = random.Random(f"{seed} {kind}")
    trials = Trials(folder, kind, rng)
    last = trials.moments()
    if wanted == "all":
        chosen = [(moment, signum) for moment in range(1, last + 2) for signum in SIGNALS]
    else:
        chosen = [(rng.randint(1, last + 1), rng.choice(SIGNALS)) for _ in range(int(wanted))]
    counts: Counter[str] = Counter()
    for moment, signum in chosen:
        ending = trials.try_at(moment, signum)
        counts[ending.found] += 1
        problem = wrong(trials, ending, signum)
        if problem:
            yield {"moment": moment, "signal": signum.name, "wrong": problem} | attrs.asdict(ending)
    yield {"kind": kind, "moments": last, "tried": len(chosen)} | counts


def run() -> None:
    """The program."""
    import drivers.toy

    from tapcore.interface.registry import default_registry

    folder, kind, seed, wanted = sys.argv[1:]
    if "toy" not in default_registry():
        default_registry().register(drivers.toy.ToyDriver(), handle="toy")
    for one in KINDS if kind == "every" else [kind]:
        home = Path(folder).resolve() / one
        home.mkdir()
        for result in results(home, one, seed, wanted):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    run()

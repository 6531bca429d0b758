"""`tapdisk` started warm: as a fork of a process that imported it, for a part of the CPU time.

Tests start `tapdisk` with `subprocess`, hundreds of times, and importing is nearly all that these
processes do. So each pytest process keeps one warm process (`warmprocess`) that imported all of it.
Where `subprocess` is to start the installed script, the warm process forks instead, and its child
becomes what the script would have been: a child of the pytest process, with the descriptors, the
working directory, the environment, the session and the standard streams that `subprocess` asked
for. It runs the same entry, is signalled and waited for as ever, and has nothing of the test's
process.

What a fork cannot show is started in truth: other variables for the interpreter or the locale,
other signals ignored, other limits, another user, `preexec_fn`; and what a test starts in another
way: `[sys.executable, TAPDISK, ...]`, or by a shell. ``TAPCORE_COLD=1`` starts all in truth.
"""

from __future__ import annotations

import array
import errno
import marshal
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import warmprocess

SCRIPT = os.fsencode(Path(sys.executable).parent / "tapdisk")
_READ_AT_A_START = (b"PYTHON", b"LC_", b"LANG", b"LD_", b"MALLOC_", b"GLIBC_")
_MOST = 64 << 10  # bytes of arguments and environment
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # by `subprocess`
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_SETTINGS = 22  # of `_fork_exec`, the last of them `preexec_fn`


class WarmStarts:
    """Takes the place of what `subprocess` forks with, in one process."""

    def __init__(self) -> None:
        self._cold = subprocess._fork_exec  # type: ignore[attr-defined]
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._inherited = _inherited()
        self._environment = _read_at_a_start(os.environb)
        self._socket, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, warmprocess.__file__, str(number)]
            self._process = subprocess.Popen(command, pass_fds=[number])
        subprocess._fork_exec = self._fork_exec  # type: ignore[attr-defined]

    def end(self) -> None:
        """Let the warm process end; what is started from now on is started in truth."""
        subprocess._fork_exec = self._cold  # type: ignore[attr-defined]
        self._socket.close()
        self._process.wait()

    def _fork_exec(self, *given: Any) -> int:
        """As `_posixsubprocess.fork_exec`."""
        pid = self._warm(*given[:_SETTINGS]) if len(given) >= _SETTINGS else 0
        return pid or int(self._cold(*given))

    def _warm(
        self,
        arguments: Any,
        programs: Any,
        close_fds: bool,
        kept: Any,
        cwd: Any,
        env: Any,
        stdin: int,
        _p2cwrite: int,
        _c2pread: int,
        stdout: int,
        _errread: int,
        stderr: int,
        _errpipe_read: int,
        errpipe_write: int,
        restore_signals: bool,
        new_session: bool,
        process_group: int,
        gid: Any,
        gids: Any,
        uid: Any,
        umask: int,
        preexec_fn: Any,
    ) -> int:
        """The child's number; 0 where it has to be started in truth."""
        if tuple(programs) != (SCRIPT,) or os.getpid() != self._owner:
            return 0
        if not close_fds or not restore_signals or preexec_fn is not None or umask >= 0:
            return 0
        if (gid, gids, uid) != (None, None, None) or _inherited() != self._inherited:
            return 0
        environment = dict(os.environb) if env is None else dict(v.split(b"=", 1) for v in env)
        words = [os.fsencode(word) for word in arguments]
        start = {
            "arguments": words,
            "environment": environment,
            "umask": _umask(),
            "new_session": bool(new_session),
            "process_group": process_group,
        }
        if _read_at_a_start(environment) != self._environment or words[0] != SCRIPT:
            return 0
        passed = {fd: fd for fd in kept if fd != errpipe_write}
        for number, fd in enumerate((stdin, stdout, stderr)):
            passed[number] = number if fd == -1 else fd
        return self._ask(start, passed, cwd)

    def _ask(self, start: dict[str, Any], passed: Mapping[int, int], cwd: Any) -> int:
        start["fds"] = list(passed)
        body = marshal.dumps(start)
        if len(body) > _MOST or len(passed) >= warmprocess.MOST_FDS:
            return 0
        try:
            where = os.open(cwd or ".", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return 0
        try:
            with self._lock:
                header = warmprocess.LENGTH.pack(len(body))
                fds = array.array("i", [where, *passed.values()])
                ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)
                self._socket.sendmsg([header], [ancillary])
                self._socket.sendall(body)
                answer = self._socket.recv(warmprocess.PID.size, socket.MSG_WAITALL)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise
            return 0  # a standard stream of this process itself is closed
        finally:
            os.close(where)
        if len(answer) < warmprocess.PID.size:
            raise RuntimeError("the warm process has died")
        (pid,) = warmprocess.PID.unpack(answer)
        return max(0, int(pid))


def _inherited() -> object:
    """What a process that is started inherits, and a fork of the warm one would not."""
    ignored = [
        signum
        for signum in signal.valid_signals()
        if signum not in _RESTORED and signal.getsignal(signum) == signal.SIG_IGN
    ]
    limits = [resource.getrlimit(limit) for limit in _LIMITS]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return ignored, limits, blocked, os.getresuid(), os.getresgid(), os.getgroups()


def _read_at_a_start(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {k: v for k, v in environment.items() if k.startswith(_READ_AT_A_START)}


def _umask() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))

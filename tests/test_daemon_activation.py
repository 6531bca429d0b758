"""A daemon whose control socket somebody else has opened, as systemd does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from daemons import TAPDISK, daemon_in

from tapcore.daemon.client import DaemonClient

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_who_asks_before_it_runs_is_answered(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon, socket.socket(socket.AF_UNIX) as listener:
        daemon.run_dir.mkdir(mode=0o700)
        control = daemon.run_dir / "control.sock"
        listener.bind(str(control))
        listener.listen()
        spare = os.dup(listener.fileno())
        words = [TAPDISK, "daemon", "--run-dir", daemon.run_dir]
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(control))
            early.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "version"}\n')
            daemon.process = subprocess.Popen(
                [sys.executable, "-c", ACTIVATE, str(spare), *map(str, words)],
                pass_fds=(spare,),
                stdout=subprocess.DEVNULL,
                text=True,
            )
            os.close(spare)
            early.settimeout(60)
            assert b'"version"' in early.recv(4096)
        with DaemonClient(daemon.run_dir, timeout=60) as client:
            assert client.disks() == []
        assert daemon.end() == 0
        assert control.exists()  # it is not the daemon's

"""Bad input to the real `tapdisk`: one line on standard error, the right status, no traceback."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import tapcore
from peers import missing
from tapcore.cli.failures import Session, set_up_logging

TAPDISK = Path(sys.executable).parent / "tapdisk"


def run(
    *arguments: object,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, TAPDISK, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def check_error(done: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.startswith("tapdisk: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["info", "nothing"], 1, "tapdisk: nothing: No such file or directory"),
        (["info", "aio:nothing"], 1, "nothing: No such file or directory"),
        (["info", "."], 1, ".: is a directory, not an image"),
        (["info", "fifo"], 1, "fifo: is a pipe; an image must be a file or a block device"),
        (["info", "/dev/null"], 1, "/dev/null: is a character device"),
        (["info", "nope:disk"], 1, "nope:disk: no driver has the handle 'nope' (installed: "),
        (["info", "aio:"], 1, "names no image after the handle"),
        (["info", ""], 1, "an image's name must not be empty"),
        (["info", "ram:12Q"], 1, "12Q: is neither an existing file nor a size like 64M"),
        (["info", "ram:0"], 1, "must not be empty"),
        (["info", "disk/x"], 1, "Not a directory"),
        (["info", "x" * 300], 1, "File name too long"),
        (["info", "odd\nname\x1b[1m"], 1, "odd\\x0aname\\x1b[1m: No such file"),
        (["info", b"\xff\xfe"], 1, "No such file"),
        (["map", "nothing"], 1, "nothing: No such file"),
        (["inspect", "nothing"], 1, "nothing: No such file"),
        (["check", "disk"], 1, "disk: the format 'aio' has no metadata to check"),
        (["compare", "disk", "nothing"], 2, "nothing: No such file"),
        (["compare", "disk", "nope:x"], 2, "no driver has the handle"),
        (["convert", "nothing", "new.img"], 1, "nothing: No such file"),
        (["convert", "disk", "new.xyz"], 1, "write HANDLE:PATH"),
        (["convert", "disk", "no/new.img"], 1, "no/new.img: No such file"),
        (["create", "new.img"], 1, "new.img: a new image needs a size"),
        (["create", "disk.qcow9", "1M"], 1, "disk.qcow9: cannot tell the format"),
        (["create", "new.img", "1M", "-o", "a=b"], 1, "no option 'a' (known: preallocation)"),
        (["resize", "disk", "-1M", "--shrink"], 1, "disk: has only 512 bytes"),
        (["resize", "nothing", "1M"], 1, "nothing: No such file"),
        (["bench", "nothing"], 1, "nothing: No such file"),
        (["bench", "sync:disk", "--cache", "none"], 1, "disk: sync: always goes through"),
        (["serve", "nothing", "--port", "0"], 1, "nothing: No such file"),
        (["serve", "disk", "--socket", "no/socket"], 1, "no/socket: cannot listen here: No such"),
        (["serve", "disk", "disk", "--port", "0"], 1, "2 exports would be named 'disk'"),
        (["serve", "disk", "--export", "a", "--export", "b"], 1, "2 export names were given"),
        # a wrong command line
        (
            ["inof", "disk"],
            2,
            "no such command 'inof', did you mean 'info'? (see 'tapdisk --help')",
        ),
        (["info"], 2, "info: Missing argument 'IMAGE...' (see 'tapdisk info --help')"),
        (["info", "--nope", "disk"], 2, "--nope"),
        (["resize", "disk", "1M", "more"], 2, "more"),
        (["--nope"], 2, "--nope"),
        (["create", "new.img", "1Q"], 2, "create: '1Q' is not a size (examples: "),
        (["create", "new.img", "1.5"], 2, "'1.5' is not a whole number of bytes"),
        (["create", "new.img", "9000000P"], 2, "larger than a disk can be"),
        (["create", "new.img", "1M", "-o", "nope"], 2, "'nope' is not KEY=VALUE"),
        (["resize", "disk", "+x"], 2, "'x' is not a size"),
        (["resize", "--shrnk", "disk", "1M"], 2, "--shrnk"),
        (["bench", "disk", "--bs", "4Q"], 2, "--bs: '4Q' is not a size"),
        (["bench", "disk", "--rw", "trim"], 2, "--rw"),
        (["bench", "disk", "--depth", "0"], 2, "--depth"),
        (["serve"], 2, "Missing argument"),
        (["serve", "disk", "--socket", "s", "--port", "1"], 2, "--socket is one way to listen"),
        (["serve", "disk", "--port", "99999"], 2, "--port"),
        (["map", "disk", "--log-level", "loud"], 2, "--log-level"),
        (["check", "disk", "--repair", "some"], 2, "--repair"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str | bytes], status: int, message: str) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    os.mkfifo(tmp_path / "fifo")
    words = [os.fsdecode(word) for word in arguments]
    check_error(run(*words, cwd=tmp_path), status, message)
    assert sorted(os.listdir(tmp_path)) == ["disk", "fifo"]
    assert (tmp_path / "disk").read_bytes() == bytes(512)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A directory that may only be read, with files that may not be read, or not be written."""
    for name, mode in (("secret", 0o000), ("readable", 0o444)):
        (tmp_path / name).write_bytes(b"x" * 512)
        (tmp_path / name).chmod(mode)
    tmp_path.chmod(0o555)
    return tmp_path


def run_unprivileged(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Without the capabilities that let root do everything."""
    drop = []
    if os.geteuid() == 0:
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        if shutil.which("setpriv") is None or subprocess.run([*drop, "true"]).returncode:
            missing("setpriv cannot drop root's capabilities here")
    return run(*arguments, cwd=cwd, prefix=drop)


@pytest.mark.parametrize("handle", ["aio", "qcow2"])
def test_somebody_elses_file_in_a_directory_that_may_only_be_read(
    private: Path, handle: str
) -> None:
    """It cannot be replaced, only overwritten, and its owner and permissions are not ours."""
    theirs = private / "theirs"
    theirs.write_bytes(b"old")
    theirs.chmod(0o666)
    if os.geteuid() == 0:
        os.chown(theirs, 12345, 12345)
    before = theirs.stat()
    done = run_unprivileged(
        "convert", "-q", "--force", "aio:readable", f"{handle}:theirs", cwd=private
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1), done
    assert "its directory cannot be written, so it is overwritten in place" in done.stderr
    after = theirs.stat()
    assert (after.st_ino, after.st_uid, after.st_mode) == (
        before.st_ino,
        before.st_uid,
        before.st_mode,
    )
    with tapcore.open(f"{handle}:{theirs}", readonly=True) as disk:
        assert disk.readall() == b"x" * 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "secret"], "tapdisk: secret: Permission denied\n"),
        (["inspect", "secret"], "tapdisk: secret: Permission denied\n"),
        (["serve", "aio:secret", "--port", "0"], "tapdisk: secret: Permission denied\n"),
        (
            ["serve", "aio:readable", "--port", "0"],
            "readable: Permission denied for writing (--read-only would open it)\n",
        ),
        (["resize", "readable", "1M"], "readable: Permission denied for writing"),
        (["create", "new.img", "1M"], "tapdisk: new.img: Permission denied\n"),
        (["convert", "readable", "new.img"], "tapdisk: new.img: Permission denied\n"),
        (
            ["serve", "-r", "raw:readable", "--socket", "s"],
            "s: cannot listen here: Permission denied",
        ),
    ],
)
def test_no_permission(private: Path, arguments: list[str], message: str) -> None:
    check_error(run_unprivileged(*arguments, cwd=private), 1, message)


def test_read_only_in_info(private: Path) -> None:
    done = run_unprivileged("info", "readable", cwd=private)
    assert done.returncode == 0
    assert "read only:    yes\n" in done.stdout


# ---- plugins ---------------------------------------------------------------------------------


def install_plugin(place: Path, handle: str, source: str) -> dict[str, str]:
    """A distribution as pip would leave it, found through PYTHONPATH."""
    info = place / f"tap_{handle}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tap-{handle}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[tapcore.drivers]\n{handle} = tap_{handle}\n")
    (place / f"tap_{handle}.py").write_text(source)
    return {"PYTHONPATH": str(place)}


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('broken\\nfor good')", "RuntimeError: broken"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("this is no Python", "SyntaxError"),
        ("x = 1", "has no disk_info"),
        (
            "from tapcore import DiskInfo\ndisk_info = DiskInfo('broken', 'from the future', 99)",
            "was written for version 99 of the hooks",
        ),
    ],
)
def test_a_broken_plugin_breaks_nothing_else(tmp_path: Path, source: str, error: str) -> None:
    environment = install_plugin(tmp_path / "site", "broken", source)
    (tmp_path / "disk").write_bytes(bytes(512))
    done = run("formats", cwd=tmp_path, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = [line for line in done.stdout.splitlines() if line.startswith("broken")]
    assert "tap-broken 1.2" in line
    assert f"error: {error}" in line
    assert "\naio " in done.stdout
    done = run("info", "broken:disk", cwd=tmp_path, environment=environment)
    check_error(done, 1, f"broken:disk: the driver 'broken' cannot be used: {error}")
    done = run("info", "aio:disk", cwd=tmp_path, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("map", "disk", cwd=tmp_path, environment=environment)  # a guess, and so a warning
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "taken as raw, but the driver 'broken' could not be asked" in done.stderr


# ---- the process itself ----------------------------------------------------------------------


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (["--debug", "info", "nothing"], ["info", "nothing", "--debug"]):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("\ntapdisk: nothing: No such file or directory\n")


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [TAPDISK, "info", "disk"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [TAPDISK, "info", "disk"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "tapdisk: standard output: No space left on device\n"


def test_closed_streams_do_not_become_the_image(tmp_path: Path) -> None:
    """Descriptor 1 is free then, and the next file opened would get it."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    done = subprocess.run(
        ["sh", "-c", '"$0" resize -q "$1" +1M <&- >&- 2>&-', str(TAPDISK), str(image)]
    )
    assert done.returncode == 0
    assert image.read_bytes() == bytes(2 << 20)
    done = subprocess.run(
        ["sh", "-c", '"$0" resize "$1" +1M <&- >&- 2>&-', str(TAPDISK), str(image)]
    )
    assert done.returncode == 1  # what was to be said could not be
    assert image.read_bytes() == bytes(3 << 20)


def test_what_is_found_in_a_file_is_said_once_whatever_it_is_called(tmp_path: Path) -> None:
    """Each of these opens the same two images several times, by relative and absolute names."""
    options = {"subformat": "twoGbMaxExtentSparse"}
    tapcore.create_image(f"vmdk:{tmp_path}/disk.vmdk", 1 << 20, options=options)
    parent = "disk-s001.vmdk"
    arguments = ["create", "child.qcow2", "-b", f"vmdk:{parent}"]
    commands = (
        arguments,
        ["rebase", "child.qcow2", "-b", f"vmdk:{parent}"],
        ["convert", "-q", "-b", f"vmdk:{parent}", "child.qcow2", "copy.qcow2"],
        ["compare", "child.qcow2", parent],
    )
    for command in commands:
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "one extent of a disk" in line] == [
            done.stderr.strip()
        ]


def test_what_happens_to_a_disk_in_use_is_said_each_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = logging.getLogger().handlers[:]
    set_up_logging("warning", Session())
    try:
        for name in ("tapcore.engine.guard", "tapcore.opening.probe"):
            for image in ("a\0b", "a\0b", "./x", "x", "y"):
                logging.getLogger(name).warning("%s: is odd", image)
    finally:
        logging.getLogger().handlers[:] = before
    assert capsys.readouterr().err.count("is odd") == 5 + 3

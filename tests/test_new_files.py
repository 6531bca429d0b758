"""New files beside old ones: one of the two is there, and whole, whatever happens."""

import dis
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from interrupts import Moments

import tapcore
from hostfs import loop_device
from tapcore import create_host_file, open_host_file
from tapcore.files import newfile, placing
from tapcore.files.beingmade import new_files
from tapcore.files.newfiles import NewFiles, making
from tapcore.interface.identity import identity_of

MIB = 1 << 20


def fill(path: Path | str, content: bytes) -> None:
    """Write into a file that is being made, by its final name."""
    fd = open_host_file(str(path), writing=True)
    try:
        os.pwrite(fd, content, 0)
    finally:
        os.close(fd)


def make_in_vain(path: Path) -> None:
    """Begin to make a file in an old one's place, and fail."""
    with making(str(path), replace=True):
        create_host_file(str(path), MIB)
        fill(path, b"new")
        raise tapcore.UsageError("no more")


def make_beside(path: Path, newcomer: Callable[[], object]) -> None:
    """Make a file while somebody else does something."""
    with making(str(path), replace=path.exists()) as files:
        create_host_file(str(path), MIB)
        newcomer()
        files.publish()


@pytest.fixture(params=["without a name", "with a hidden name"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems that have O_TMPFILE, and others."""
    if request.param == "with a hidden name":
        monkeypatch.setattr(newfile, "_can_be_unnamed", lambda: False)
    return str(request.param)


def test_nothing_is_seen_of_a_file_until_it_is_whole(tmp_path: Path, either_way: str) -> None:
    path = tmp_path / "new.img"
    with making(str(path), replace=False) as files:
        create_host_file(str(path), MIB)
        fill(path, b"new")
        assert not path.exists()
        assert len(os.listdir(tmp_path)) == (either_way == "with a hidden name")
        files.publish()
        assert path.read_bytes() == b"new".ljust(MIB, b"\0")
    assert os.listdir(tmp_path) == ["new.img"]


def test_the_old_one_stays_until_then_and_if_it_fails(tmp_path: Path, either_way: str) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"old")
    with pytest.raises(tapcore.UsageError, match="no more"):
        make_in_vain(path)
    assert path.read_bytes() == b"old"
    with making(str(path), replace=True) as files:
        create_host_file(str(path), MIB)
        files.publish()
    assert path.read_bytes() == bytes(MIB)
    assert os.listdir(tmp_path) == ["old.img"]


def test_a_set_of_files_is_placed_together_or_not_at_all(
    tmp_path: Path, either_way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, part = tmp_path / "main", tmp_path / "part"

    def make(content: bytes) -> None:
        with making(str(main), replace=True) as files:
            for path in (part, main):
                create_host_file(str(path), 0)
                fill(path, content)
            files.publish()

    make(b"one")
    make(b"two")
    assert (main.read_bytes(), part.read_bytes()) == (b"two", b"two")
    for path in (main, part):
        path.unlink()
    real = placing._put

    def fails(made: newfile.NewFile) -> None:
        if made.path == str(main):
            raise OSError(errno.EDQUOT, "full")
        real(made)

    monkeypatch.setattr(placing, "_put", fails)
    with pytest.raises(tapcore.ImageOpenError, match="cannot be put in its place: Disk quota"):
        make(b"three")
    assert os.listdir(tmp_path) == []


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there/old.img"
    target.write_bytes(b"old")
    link = tmp_path / "link.img"
    link.symlink_to("there/old.img")
    tapcore.create_image(f"aio:{link}", MIB, force=True)
    assert link.is_symlink()
    assert target.read_bytes() == bytes(MIB)
    assert sorted(os.listdir(tmp_path)) == ["link.img", "there"]
    assert os.listdir(tmp_path / "there") == ["old.img"]


def test_another_name_of_the_old_file_keeps_the_old_content(tmp_path: Path) -> None:
    path, other = tmp_path / "old.img", tmp_path / "other"
    path.write_bytes(b"old")
    os.link(path, other)
    tapcore.create_image(f"aio:{path}", MIB, force=True)
    assert (path.stat().st_size, other.read_bytes()) == (MIB, b"old")


def test_who_owns_the_old_one_owns_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"old")
    path.chmod(0o664)
    os.setxattr(path, "user.note", b"mine")
    if not os.geteuid():
        os.chown(path, 12345, 54321)
    before = path.stat()
    tapcore.create_image(f"aio:{path}", MIB, force=True)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert os.getxattr(path, "user.note") == b"mine"


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tapcore.create_image(f"aio:{tmp_path}/a.img", MIB)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.img").stat().st_mode) == 0o640


def test_a_copy_can_be_read_by_no_more_than_its_source(tmp_path: Path) -> None:
    source, wide = tmp_path / "secret.img", tmp_path / "wide.img"
    source.write_bytes(b"x" * 4096)
    source.chmod(0o400)
    wide.write_bytes(b"old")
    wide.chmod(0o644)
    tapcore.convert_image(f"aio:{source}", f"qcow2:{tmp_path}/new")
    tapcore.convert_image(f"aio:{source}", f"aio:{wide}", force=True)
    tapcore.create_image(f"qcow2:{tmp_path}/child", None, parent=f"aio:{source}")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)}
    assert modes == {"secret.img": 0o400, "wide.img": 0o600, "new": 0o600, "child": 0o644}


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"precious")
    options = {"data_file": "data"}
    with pytest.raises(tapcore.UsageError, match="exists already; --force") as caught:
        tapcore.create_image(f"qcow2:{tmp_path}/disk", MIB, options=options)
    assert caught.value.image == f"{tmp_path}/data"
    assert (tmp_path / "data").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["data"]
    tapcore.create_image(f"qcow2:{tmp_path}/disk", MIB, options=options, force=True)
    assert (tmp_path / "data").read_bytes() == bytes(MIB)


def test_somebody_elses_new_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    with pytest.raises(tapcore.UsageError, match="in the meantime"):
        make_beside(path, lambda: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"

    def put_another_there() -> None:
        (tmp_path / "other").write_bytes(b"another")
        os.rename(tmp_path / "other", path)

    with pytest.raises(tapcore.UsageError, match="in the meantime"):
        make_beside(path, put_another_there)
    assert path.read_bytes() == b"another"


def test_nobody_may_begin_to_use_what_is_about_to_go(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"old" * 512)
    with making(str(path), replace=True):
        create_host_file(str(path), MIB)
        busy = f"import tapcore; tapcore.open('aio:{path}', readonly=False)"
        done = subprocess.run([sys.executable, "-c", busy], capture_output=True, check=False)
        assert b"is in use" in done.stderr


def test_other_threads_and_programs_see_the_old_one(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "old.img"
    path.write_bytes(b"old" * 512)
    seen: list[bytes] = []

    def look() -> None:
        fd = open_host_file(str(path))
        seen.append(os.pread(fd, 3, 0))
        os.close(fd)

    with making(str(path), replace=True):
        create_host_file(str(path), MIB)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
    assert seen == [b"old", b"\0\0\0"]


# ---- the end of the process ----------------------------------------------------------------------

_MAKER = """
import os, signal, sys
from tapcore import create_host_file
from tapcore.files import newfile, placing
from tapcore.files.beingmade import new_files
from tapcore.files.newfiles import NewFiles, making
main, part, stop = sys.argv[1:]
if stop == "named":
    newfile._can_be_unnamed = lambda: False
real = placing._put
def put(made):
    if stop == made.path:  # the maker ends between one step and the next
        os.kill(maker, signal.SIGKILL)
        while os.getppid() == maker:
            pass
    real(made)
placing._put, maker = put, os.getpid()
with making(main, replace=True) as files:
    for path in (part, main):
        create_host_file(path, 4)
    if stop in ("whole", "named"):
        os.kill(maker, signal.SIGKILL)
    files.publish()
"""


def kill_a_maker(main: Path, part: Path, stop: Path | str) -> None:
    """Make a set of two files, and be killed at a moment; returns when all of it has ended."""
    ended, told = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MAKER, str(main), str(part), str(stop)],
            check=False,
            pass_fds=(told,),
        )
        os.close(told)
        assert done.returncode == -signal.SIGKILL
        assert os.read(ended, 1) == b""  # nobody has the other end any more
    finally:
        os.close(ended)


@pytest.mark.parametrize("stop", ["part", "main"])
def test_killed_while_files_are_placed_all_are(tmp_path: Path, stop: str) -> None:
    main, part = tmp_path / "main", tmp_path / "part"
    for path in (main, part):
        path.write_bytes(b"old")
    kill_a_maker(main, part, tmp_path / stop)
    assert sorted(os.listdir(tmp_path)) == ["main", "part"]
    assert (main.read_bytes(), part.read_bytes()) == (bytes(4), bytes(4))


def test_killed_before_nothing_is_left(tmp_path: Path) -> None:
    main, part = tmp_path / "main", tmp_path / "part"
    main.write_bytes(b"old")
    kill_a_maker(main, part, "whole")
    assert (os.listdir(tmp_path), main.read_bytes()) == (["main"], b"old")


def test_what_a_killed_process_had_to_leave_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, part = tmp_path / "main", tmp_path / "part"
    kill_a_maker(main, part, "named")
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".tapdisk-is-not-ours").touch()
    monkeypatch.setattr(newfile, "_can_be_unnamed", lambda: False)
    with making(str(main), replace=True) as files:
        for path in (part, main):
            create_host_file(str(path), 4)
        files.publish()
    assert sorted(os.listdir(tmp_path)) == [".tapdisk-is-not-ours", "main", "part"]


# ---- where nothing can be put beside -------------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which nothing can be made, as a file system says it; root writes anywhere."""
    home = tmp_path / "home"
    home.mkdir()
    real = os.access

    def access(path: str, mode: int, **how: bool) -> bool:
        return False if path == str(home) and mode & os.W_OK else real(path, mode, **how)

    monkeypatch.setattr(os, "access", access)
    return home


def test_in_an_unwritable_directory_the_old_file_is_overwritten_and_that_is_said(
    unwritable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = unwritable / "old.img"
    path.write_bytes(b"old" * 512)
    before = identity_of(str(path))
    tapcore.create_image(f"qcow2:{path}", MIB, force=True)
    assert identity_of(str(path)) == before
    assert "its directory cannot be written, so it is overwritten in place" in caplog.text
    with tapcore.open(f"qcow2:{path}", readonly=True) as disk:
        assert disk.size == MIB


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qcow2:old", {"data_file": "data"}),
        ("qcow2:old", {"data_file": "data", "data_file_raw": "on", "preallocation": "metadata"}),
        ("vmdk:old", {"subformat": "monolithicFlat"}),
        ("vmdk:old", {"subformat": "twoGbMaxExtentSparse"}),
    ],
)
def test_in_an_unwritable_directory_a_set_of_files_is_overwritten_too(
    unwritable: Path, name: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unwritable)
    content = os.urandom(MIB) + bytes(MIB)
    (unwritable.parent / "source").write_bytes(content)
    tapcore.create_image(name, MIB, options=options)
    before = {path: identity_of(path) for path in os.listdir()}
    tapcore.convert_image("aio:../source", name, options=options, force=True)
    assert {path: identity_of(path) for path in os.listdir()} == before
    with tapcore.open(name, readonly=True) as disk:
        assert disk.readall() == content


def test_what_was_overwritten_in_part_looks_like_no_image(unwritable: Path) -> None:
    path = unwritable / "old.img"
    path.write_bytes(b"old" * 512)
    with pytest.raises(tapcore.UsageError, match=r"no more \(what it held is lost"):
        make_in_vain(path)
    assert path.stat().st_size == 0


def test_a_device_that_was_overwritten_in_part_looks_like_no_image(tmp_path: Path) -> None:
    backing, source = tmp_path / "backing", tmp_path / "source"
    backing.write_bytes(os.urandom(4 * MIB))
    source.write_bytes(os.urandom(MIB))

    def stop(done: int, total: int) -> None:
        if done:
            raise tapcore.IOFailedError("no more")

    with loop_device(backing) as device:
        before = backing.read_bytes()
        with pytest.raises(tapcore.UsageError):
            tapcore.create_image(f"qcow2:{device}", MIB, force=True, options={"cluster_size": "3"})
        assert backing.read_bytes() == before
        with pytest.raises(tapcore.IOFailedError, match="what it held is lost"):
            tapcore.convert_image(f"aio:{source}", f"qcow2:{device}", force=True, progress=stop)
        subprocess.run(["sync", device], check=True)
        assert backing.read_bytes()[:4096] == bytes(4096)


# ---- more files than a process may have open -----------------------------------------------------


def test_a_set_may_have_more_files_than_a_process_usually_has(tmp_path: Path) -> None:
    program = (  # which has not imported `resource` itself: at the limit that cannot be opened
        "import tapcore, sys\n"
        "tapcore.create_image(sys.argv[1], 100 << 30,"
        " options={'subformat': 'twoGbMaxExtentSparse'})\n"
    )
    limited = ["sh", "-c", 'ulimit -S -n 40; exec "$@"', "sh"]
    command = [*limited, sys.executable, "-c", program, f"{tmp_path}/disk.vmdk"]
    subprocess.run(command, check=True)
    assert len(os.listdir(tmp_path)) == 52


def test_in_a_directory_that_is_no_more_the_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(tapcore.ImageOpenError, match=r"^x\.qcow2: No such file or directory"):
        tapcore.create_image("x.qcow2", MIB)


def test_what_cannot_be_kept_leaves_nothing_and_says_so(
    tmp_path: Path, either_way: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new.img"
    (tmp_path / "new.img.partial").mkdir()
    with making(str(path), replace=False) as files:
        create_host_file(str(path), MIB)
        assert files.keep_partial() == []
    assert os.listdir(tmp_path) == ["new.img.partial"]
    assert "new.img.partial: nothing can be kept there: Is a directory" in caplog.text


def _where_signals_are_heard(code: CodeType) -> set[int]:
    """Offsets of opcodes: those behind a call, and at the beginning of a function or its rest."""
    found, before = set(), ""
    for each in dis.get_instructions(code):
        if before.startswith("CALL") or each.opname == "RESUME":
            found.add(each.offset)
        before = each.opname
    return found


def _interrupted_at(moment: int, code: CodeType) -> Callable[[FrameType, str, object], Any]:
    """A trace function: Ctrl-C at one of the places in a function where it can be heard."""
    left, places = moment, _where_signals_are_heard(code)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in places:
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_moment_leaves_no_file_being_made(tmp_path: Path) -> None:
    """Ctrl-C comes between any two steps of Python, so also right behind a `set`."""
    code = making.__wrapped__.__code__  # type: ignore[attr-defined]
    before = sys.gettrace()
    for moment in range(1, 1000):
        sys.settrace(_interrupted_at(moment, code))
        try:
            with making(str(tmp_path / "new"), replace=False):
                pass
        except KeyboardInterrupt:
            assert new_files() is None, moment
        else:
            break
        finally:
            sys.settrace(before)
    assert 5 < moment < 999


@pytest.mark.parametrize("published", [False, True])
def test_who_is_interrupted_in_giving_up_files_closes_none_twice(
    tmp_path: Path, published: bool
) -> None:
    main, part, old_part = (str(tmp_path / name) for name in ("main", "part", "old part"))

    def interrupted(at: int) -> int:
        for path in (main, part, old_part):
            Path(path).write_bytes(b"old")
        before = sorted(os.listdir("/proc/self/fd"))
        files = NewFiles(main, replace=True, untouchable={})
        for path in (part, main):
            files.create(path)
        files.supersede(old_part)
        if published:
            files.publish()

        def give_up() -> None:
            files.take_back(part)
            files.discard()

        moments = Moments(at)
        with suppress(KeyboardInterrupt):
            moments.run(give_up)
        files.discard()  # as `making` does
        assert sorted(os.listdir("/proc/self/fd")) == before
        left = {"main", "part"} if published else {"main", "part", "old part"}
        assert set(os.listdir(tmp_path)) == left
        return moments.count

    for at in range(1, interrupted(0) + 1):
        interrupted(at)

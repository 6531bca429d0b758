"""The broker: it opens what the daemon has told it, whatever a disk process asks for."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import tapcore
from tapcore import TapError
from tapcore.daemon.borrowing import Borrowing
from tapcore.daemon.broker import Broker
from tapcore.daemon.loan import Loan
from tapcore.daemon.spec import DiskSpec
from tapcore.files.locks import lock_image
from tapcore.interface.identity import Identity, identity_of

MIB = 1 << 20


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on two images, an extent beside it, and what is no matter of it."""
    monkeypatch.chdir(tmp_path)
    tapcore.create_image("qcow2:base", MIB)
    tapcore.create_image("qcow2:disk", parent="qcow2:base", options={"data_file": "data"})
    tapcore.create_image("qcow2:other", MIB)


@contextlib.contextmanager
def lending(loan: Loan, teller: socket.socket | None = None) -> Iterator[Borrowing]:
    """A broker in a thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=Broker(theirs, loan, teller=teller).serve)
    thread.start()
    borrowing = Borrowing(ours.detach())
    try:
        yield borrowing
    finally:
        borrowing.close()
        thread.join()
        theirs.close()


def disk(*, read_only: bool = False) -> DiskSpec:
    return DiskSpec("qcow2:disk", "d", os.getcwd(), read_only=read_only)


def which(name: str) -> Identity:
    found = identity_of(name)
    assert found is not None
    return found


def lent(borrowing: Borrowing) -> dict[str, str]:
    """How each file is lent: "w", "r", or not at all."""
    found = {}
    for name in sorted(os.listdir()):
        for word, flags in (("w", os.O_RDWR), ("r", os.O_RDONLY)):
            with contextlib.suppress(TapError):
                os.close(borrowing.open(which(name), flags))
                found[name] = word
                break
    return found


CHAIN = {"base": "r", "data": "w", "disk": "w"}


@pytest.mark.parametrize(
    ("loan", "files"),
    [
        ({}, CHAIN),
        ({"parent": True}, {**CHAIN, "base": "w"}),
        ({"image": "qcow2:other"}, {**CHAIN, "other": "w"}),
        ({"image": "qcow2:missing"}, CHAIN),
    ],
    ids=["resume-io", "commit-live", "swap", "swap to nothing"],
)
def test_it_lends_what_a_change_of_the_disk_needs(
    loan: dict[str, object], files: dict[str, str]
) -> None:
    given = {"spec": disk().as_dict(), "options": [], "directory": os.getcwd(), **loan}
    with lending(Loan.of(given)) as borrowing:
        assert lent(borrowing) == files


def test_what_an_image_names_that_was_no_part_of_it_is_only_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = tuple(os.path.realpath(name) for name in ("disk", "old data"))
    with lending(Loan(attrs.evolve(disk(), own=own))) as borrowing:
        assert lent(borrowing) == {**CHAIN, "data": "r"}
    assert "data, which was no part of it" in caplog.text


def test_the_daemon_hears_what_each_image_writes() -> None:
    ear, mouth = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loan = Loan(disk(), image="qcow2:other", directory=os.getcwd(), parent=True)
    with ear, mouth, lending(loan, mouth) as borrowing:
        lent(borrowing)
        told = json.loads(ear.recv(1 << 16))
    places = {part: [os.path.basename(path) for path in paths] for part, paths in told.items()}
    assert places == {"old": ["data", "disk"], "image": ["other"], "parent": ["base"]}


def test_it_lends_a_disk_that_is_only_read_for_reading() -> None:
    with lending(Loan(disk(read_only=True))) as borrowing:
        assert lent(borrowing) == dict.fromkeys(CHAIN, "r")


def test_each_file_that_it_lends_has_locks_of_its_own() -> None:
    with lending(Loan(disk())) as borrowing:
        one, other = (borrowing.open(which("disk"), os.O_RDWR) for _ in range(2))
        lock_image(one, writing=True)
        with pytest.raises(tapcore.ImageLockedError):
            lock_image(other, writing=True)
    os.close(one)
    lock_image(other, writing=True)
    os.close(other)


@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_CREAT, os.O_APPEND, os.O_PATH])
def test_it_opens_nothing_in_other_ways(flags: int) -> None:
    with lending(Loan(disk())) as borrowing, pytest.raises(TapError, match="Permission denied"):
        borrowing.open(which("disk"), os.O_RDWR | flags)


def test_it_makes_the_child_that_was_asked_for_and_no_other() -> None:
    with lending(Loan(disk())) as borrowing, pytest.raises(TapError, match="Permission denied"):
        borrowing.make()
    with lending(Loan(disk(), child="qcow2:new", directory=os.getcwd())) as borrowing:
        assert borrowing.make().name == f"{os.getcwd()}/new"
        with pytest.raises(TapError, match="Permission denied"):
            borrowing.make()
        assert lent(borrowing) == {**CHAIN, "new": "w"}
        borrowing.unmake()
        assert not os.path.lexists("new")


def test_it_replaces_nothing() -> None:
    with lending(Loan(disk(), child="qcow2:other", directory=os.getcwd())) as borrowing:
        with pytest.raises(TapError, match="exists already"):
            borrowing.make()
        borrowing.unmake()
    assert os.path.exists("other")


def test_a_name_that_leads_elsewhere_by_now_gets_nobody_another_file() -> None:
    before = which("disk")
    with lending(Loan(disk())) as borrowing:
        os.close(borrowing.open(before, os.O_RDWR))
        os.replace("other", "disk")
        fd = borrowing.open(before, os.O_RDWR)
        assert os.fstat(fd).st_ino == before[1]
        os.close(fd)


@pytest.mark.parametrize("line", [b"no JSON\n", b"{}\n", b'{"jsonrpc":"2.0","method":"open"}\n'])
def test_nonsense_gets_an_error(line: bytes) -> None:
    with lending(Loan(disk())) as borrowing:
        borrowing._socket.send(line)
        assert b'"error"' in borrowing._socket.recv(4096)
        os.close(borrowing.open(which("disk"), os.O_RDWR))

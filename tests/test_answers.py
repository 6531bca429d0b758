"""Answers that come later: what a file calls when its queued work is done."""

import errno
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapcore import Answer, DiskDriver, OpenOptions, answer_over
from tapcore.files import ImageFile, open_image_file

DD: Any = object()
"""The image of the calls; a callback is given just this object."""

Calls = list[tuple[object, ...]]


def callback(calls: Calls) -> Callable[..., int]:
    """Notes its arguments, and says that seven requests were completed."""

    def cb(dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, prv: Any) -> int:
        calls.append((dd, res, sector, nb_sectors, id, prv))
        return 7

    return cb


@pytest.fixture(params=["writeback", "none"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageFile]:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(64 << 10))
    found = open_image_file(str(path), 0, OpenOptions(cache=request.param))
    yield found
    found.close()


def reap(file: ImageFile) -> int:
    """Wait for all that is queued; what `reap` returned, added up."""
    file.submit()
    finished = 0
    while file.in_flight:
        assert select.select([file.io_fd], [], [], 30)[0]
        finished += file.reap()
    return finished


def test_an_answer_gives_the_callback_what_the_hook_got() -> None:
    calls: Calls = []
    answer = Answer(callback(calls), DD, 3, "mine")
    assert answer(-errno.EIO, 8, 2) == 7
    assert answer.over(10, 6)(0) == 7
    assert answer_over(callback(calls), DD, 1, 2, 4, "other")(0) == 7
    assert calls == [
        (DD, -errno.EIO, 8, 2, 3, "mine"),
        (DD, 0, 10, 6, 3, "mine"),
        (DD, 0, 1, 2, 4, "other"),
    ]


def queue_all(file: ImageFile, then: Callable[[int], Any]) -> int:
    """Queue one operation of each kind; `then(n)` is what the nth is given. Returns how many."""
    buf = memoryview(bytearray(4096))
    assert file.queue_read(4096, buf, then(0)) == 0
    assert file.queue_write(8192, memoryview(bytes(4096)), then(1)) == 0
    file.queue_discard(16384, 4096, then(2))
    file.queue_zero(32768, 4096, True, then(3))
    file.queue_flush(then(4))
    return 5


def test_each_queued_method_takes_a_callable(file: ImageFile) -> None:
    results: dict[int, int] = {}

    def then(number: int) -> Callable[[int], int]:
        def note(res: int) -> int:
            assert number not in results
            results[number] = res
            return 1

        return note

    count = queue_all(file, then)
    assert reap(file) == count
    assert results == dict.fromkeys(range(count), 0)


def test_each_queued_method_takes_the_hook_s_arguments_as_a_tuple(file: ImageFile) -> None:
    """As drivers gave them before there was an `Answer`."""
    calls: Calls = []
    cb = callback(calls)
    count = queue_all(file, lambda number: (cb, DD, 100 + number, 1, number, "mine"))
    assert reap(file) == 7 * count
    assert sorted(calls, key=repr) == [(DD, 0, 100 + n, 1, n, "mine") for n in range(count)]


def test_work_is_queued_with_what_follows_it(file: ImageFile) -> None:
    results: list[int] = []

    def then(res: int) -> int:
        results.append(res)
        return 2

    def refuse() -> int:
        raise OSError(errno.ENOSPC, "full")

    file.queue_work(lambda: 0, then)
    assert reap(file) == 2
    file.queue_work(lambda: -errno.EPERM, then)
    assert reap(file) == 2
    file.queue_work(refuse, then)
    assert reap(file) == 2
    assert results == [0, -errno.EPERM, -errno.ENOSPC]


def test_work_is_queued_with_arguments_too(file: ImageFile) -> None:
    """As drivers did before: `queue_work(work, args, answer)`."""
    calls: Calls = []
    given: list[tuple[int, str]] = []

    def work(number: int, text: str) -> int:
        given.append((number, text))
        return -errno.EBADF

    file.queue_work(work, (1, "a"), (callback(calls), DD, 5, 6, 2, None))
    assert reap(file) == 7
    assert given == [(1, "a")]
    assert calls == [(DD, -errno.EBADF, 5, 6, 2, None)]


def test_a_write_that_is_too_late_is_answered_with_an_error(file: ImageFile) -> None:
    """The file was cut meanwhile: that answer does not come from the kernel."""
    os.truncate(file.path, 4096)
    calls: Calls = []
    file.queue_write(8192, memoryview(bytes(4096)), (callback(calls), DD, 16, 8, 1, None))
    assert reap(file) == 7
    assert calls == [(DD, -errno.EIO, 16, 8, 1, None)]

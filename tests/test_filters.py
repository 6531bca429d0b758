"""Filters: what they are told, what they see, and what becomes of calls that go wrong."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import bench, open_fds

import tapcore
from tapcore import (
    Filter,
    FilterCall,
    FilterRate,
    FilterSeconds,
    FilterSize,
    OpenOptions,
    Registry,
    TapError,
    TextForm,
    UsageError,
    hookimpl,
)
from tapcore.engine import FLUSH, READ, WRITE

# ---- what they are told ----------------------------------------------------------------------


class Told(Filter):
    """Remembers what it was told.

    More about it.
    """

    def __init__(
        self,
        *,
        size: FilterSize,
        rate: FilterRate = 0.5,
        wait: FilterSeconds = 1,
        mode: Literal["fast", "slow"] = "fast",
        count: int | None = None,
        factor: float = 1.0,
        name: str = "",
        loud: bool = False,
        shout: Annotated[str, TextForm("WORD", str.upper)] = "",
    ) -> None:
        if factor < 0:
            raise ValueError("a factor is not negative")
        self.told = (size, rate, wait, mode, count, factor, name, loud, shout)


def made(text: str) -> Any:
    registry = Registry(discover=False)
    registry.register_filter("told", Told)
    registry.register_filter("plain", object())
    (found,) = registry.make_filters([text])
    return found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("told:size=4K", (4096, 0.5, 1, "fast", None, 1.0, "", False, "")),
        (
            "told:size=1,rate=25%,wait=10ms,mode=slow,count=-3,factor=1e3,name=a,,b=c,loud=on,shout=x",
            (1, 0.25, 0.01, "slow", -3, 1000.0, "a,b=c", True, "X"),
        ),
        ("told:size=0,wait=250us,rate=1", (0, 1.0, 0.00025, "fast", None, 1.0, "", False, "")),
    ],
)
def test_what_is_told_has_its_type(text: str, told: object) -> None:
    assert made(text).told == told


ALLOWED = (
    "(it takes: size=SIZE, [rate=RATE], [wait=SECONDS], [mode=fast|slow], [count=N], [factor=X], "
    "[name=TEXT], [loud=on|off], [shout=WORD])"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("told", f"the filter 'told' needs size {ALLOWED}"),
        ("told:size=1,sice=2", f"the filter 'told' has no parameter 'sice' {ALLOWED}"),
        ("told:size=big", "size: 'big' is not a size (examples: 4096, 64K, 10G, 1.5T)"),
        ("told:size=1,rate=2", "rate: '2' is not a rate (0 to 1, or 0% to 100%)"),
        ("told:size=1,wait=soon", "wait: 'soon' is not a time (examples: 250us, 10ms, 1.5s)"),
        ("told:size=1,mode=odd", "mode: 'odd' is none of fast, slow"),
        ("told:size=1,count=1.5", "count: '1.5' is not a whole number"),
        ("told:size=1,loud=yes", "loud: 'yes' is neither on nor off"),
        ("told:size=1,factor=-1", "a factor is not negative"),
        ("told:size", "the filter 'told': 'size' is not KEY=VALUE"),
        ("told:size=1,size=2", "the filter 'told': size is given twice"),
        ("plain:x=1", "the filter 'plain' takes no parameters"),
        ("nope", "no filter is named 'nope' (installed: "),
    ],
)
def test_what_cannot_be_told_is_one_line_that_says_what_can(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_of_filters() -> None:
    registry = Registry(discover=False)
    registry.register_filter("a-told", Told)
    row = registry.filters()[0]
    assert (row.name, row.title, row.error) == ("a-told", "Remembers what it was told", "")
    assert [str(each) for each in row.parameters][:2] == ["size=SIZE", "[rate=RATE]"]


def test_each_disk_has_a_filter_of_its_own() -> None:
    registry = Registry(discover=False)
    registry.register_filter("told", Told)
    one, two, three = registry.make_filters(["told:size=1", "told:size=1", Told(size=2)])
    assert one is not two
    assert three.told[0] == 2
    with pytest.raises(TypeError, match="is a class; give an instance"):
        registry.make_filters([Told])


# ---- what they see ---------------------------------------------------------------------------


class Seen(Filter):
    """Notes calls and answers."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def opened(self, dd: tapcore.DiskDriver) -> None:
        self.log.append("opened")

    def request(self, call: FilterCall) -> None:
        self.log.append((call.op, call.sector, call.nb_sectors))
        call.go_on()

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        self.log.append((call.op, res, sector, nb_sectors))
        call.answer(res, sector, nb_sectors)

    def closed(self, dd: tapcore.DiskDriver) -> None:
        self.log.append("closed")


def test_an_answer_that_comes_later_is_seen_when_it_comes() -> None:
    seen = Seen()
    image = LateImage(8, now=0.0)
    with bench([image], filters=(seen,)) as disk:
        read = disk.read(0, 1024)
        assert seen.log == ["opened", ("read", 0, 2)]
        disk.drain()
        assert read.status == 0
        answers = sorted(entry for entry in seen.log[2:] if isinstance(entry, tuple))
        assert sum(entry[3] for entry in answers) == 2
    assert seen.log[-1] == "closed"


def test_a_filter_of_both_kinds_sees_hooks_that_are_no_requests() -> None:
    class Both(Seen):
        @hookimpl(wrapper=True)
        def td_open(self, name: str) -> Iterator[None]:
            self.log.append("open")
            return (yield)

    both = Both()
    with bench([FaultyImage(8)], "faulty", filters=(both,)) as disk:
        assert disk.run(READ, 0, 512).status == 0
    assert both.log == ["open", "opened", ("read", 0, 1), ("read", 0, 0, 1), "closed"]


class Answers(Filter):
    """Does with calls and answers what it is told."""

    def __init__(
        self,
        request: Callable[[FilterCall], object] = lambda call: call.go_on(),
        answered: Callable[..., object] = lambda call, *answer: call.answer(*answer),
    ) -> None:
        self._request, self._answered = request, answered

    def request(self, call: FilterCall) -> None:
        self._request(call)

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        self._answered(call, res, sector, nb_sectors)


def test_a_filter_answers_in_place_of_the_driver_and_fails_answers() -> None:
    image = FaultyImage(8, late=True)
    refuses = Answers(lambda call: call.answer(-errno.ENOSPC) if call.sector else call.go_on())
    with bench([image], "faulty", filters=(refuses,)) as disk:
        assert disk.run(WRITE, 512, data=b"x" * 512).status == -errno.ENOSPC
        assert disk.run(WRITE, 0, data=b"x" * 512).status == 0
        assert disk.run(READ, 1024, 512).status == -errno.ENOSPC
    assert image.writes == [(0, 1)]
    lies = Answers(answered=lambda call, res, *where: call.answer(-errno.EIO, *where))
    with bench([image], "faulty", filters=(lies,)) as disk:
        assert disk.run(WRITE, 512, data=b"y" * 512).status == -errno.EIO
        assert disk.run(FLUSH).status == -errno.EIO
    assert bytes(image.data[512:1024]) == b"y" * 512


@pytest.mark.parametrize("late", [False, True])
def test_a_bug_in_a_filter_is_an_error_of_the_request_and_no_other(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(call: FilterCall, *answer: int) -> None:
        if call.sector == 1:
            raise KeyError("oops")
        if call.sector == 2:
            raise OSError(errno.ENOMEM, "no")
        call.go_on() if not answer else call.answer(*answer)

    for plugin in (Answers(request=buggy), Answers(answered=buggy)):
        with bench([FaultyImage(8, late=late)], "faulty", filters=(plugin,)) as disk:
            assert disk.run(READ, 512, 512).status == -errno.EIO
            assert disk.run(READ, 1024, 512).status == -errno.ENOMEM
            assert disk.run(READ, 0, 512).status == 0
    assert caplog.text.count("a bug in the filter Answers: KeyError: 'oops'") == 2


def test_a_filter_may_ask_again() -> None:
    """A read that failed is read once more, whatever calls the answer."""
    tries: list[int] = []

    def answered(call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        tries.append(res)
        if res and len(tries) < 3:
            call.go_on()
        else:
            call.answer(res, sector, nb_sectors)

    for late in (False, True):
        tries.clear()
        image = FaultyImage(8, late=late, bad={3: errno.EIO})
        with bench([image], "faulty", filters=(Answers(answered=answered),)) as disk:
            assert disk.run(READ, 3 * 512, 512).status == -errno.EIO
        assert tries == [-errno.EIO] * 3


class Turned(Filter):
    """Stores every byte turned over."""

    changes_content = True

    def request(self, call: FilterCall) -> None:
        if call.op == "write":
            assert call.buf is not None
            call.go_on(buf=memoryview(turned(bytes(call.buf))))
        elif call.op == "zero":
            call.answer(-errno.EOPNOTSUPP)
        else:
            call.go_on()

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        if call.op == "read" and not res:
            part = call.part(sector, nb_sectors)
            part[:] = turned(bytes(part))
        call.answer(res, sector, nb_sectors)


def turned(content: bytes) -> bytes:
    return content.translate(bytes(255 - byte for byte in range(256)))


def test_a_filter_changes_content(tmp_path: Path) -> None:
    name = f"aio:{tmp_path / 'disk.img'}"
    tapcore.create_image(name, 1 << 20)
    with tapcore.open(name, filters=(Turned(),), readonly=False) as disk:
        assert disk.pread(0, length=512) == b"\xff" * 512
        disk.pwrite(1000, b"hello" * 1000)
        disk.zero(65536, length=65536)
        assert disk.pread(1000, length=5000) == b"hello" * 1000
        assert disk.pread(65536, length=65536) == bytes(65536)
        # what the file's holes would tell is not what is read
        assert {run.kind for run in disk.extents()} == {"compressed"}
        whole = disk.pread(0, length=1 << 20)
    assert turned((tmp_path / "disk.img").read_bytes()) == whole
    tapcore.convert_image(name, tmp_path / "copy.img", filters=(Turned(),))
    assert (tmp_path / "copy.img").read_bytes() == whole


# ---- drivers that fail -----------------------------------------------------------------------


def both() -> tuple[Filter, Filter]:
    return (Seen(), Answers(lambda call: call.go_on(after=1e-4 if call.sector % 2 else 0)))


@pytest.mark.parametrize("fault", [OSError(errno.ENOMEM, "no"), TapError("no", errno=errno.ENOMEM)])
def test_what_a_driver_fails_to_submit_or_reap_is_answered_and_seen(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    image = FaultyImage(8, late=True, submit_faults={0: fault})
    plugins = both()
    with bench([image], "faulty", filters=plugins) as disk:
        reads = [disk.read(n * 512, 512) for n in (0, 2)]
        disk.drain()
        assert [read.status for read in reads] == [-errno.ENOMEM] * 2
        assert disk.run(READ, 512, 512).status == 0
    seen = plugins[0]
    assert isinstance(seen, Seen)
    assert ("read", -errno.ENOMEM, 0, 1) in seen.log
    image = FaultyImage(8, late=True, reap_faults={0: fault})
    with bench([image], "faulty", filters=both()) as disk:
        reads = [disk.read(n * 512, 512) for n in range(4)]
        disk.drain()
        assert {read.status for read in reads} <= {0, -errno.ENOMEM}
        assert -errno.ENOMEM in [read.status for read in reads]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("fault", "status"),
    [(OSError(errno.ENOMEM, "no"), -errno.ENOMEM), (-errno.ENXIO, -errno.ENXIO)],
    ids=str,
)
def test_what_a_driver_fails_to_take_is_answered_and_seen(
    fault: Any, status: int, late: bool
) -> None:
    image = FaultyImage(8, late=late, faults={0: fault})
    plugins = both()
    with bench([image], "faulty", filters=plugins) as disk:
        reads = [disk.read(n * 512, 512) for n in range(3)]
        disk.drain()
        assert sorted(read.status for read in reads) == [status, 0, 0]
    assert isinstance(plugins[0], Seen)
    assert sum(entry[1:2] == (status,) for entry in plugins[0].log if entry[0] == "read") == 1  # type: ignore[index]


def test_a_call_that_a_full_driver_refuses_is_seen_once() -> None:
    image = FaultyImage(64, late=True, slots=1)
    seen, delays = Seen(), Answers(lambda call: call.go_on(after=1e-4))
    with bench([image], "faulty", filters=(seen, delays)) as disk:
        reads = [disk.read(n * 512, 512) for n in range(16)]
        disk.drain()
        assert [read.status for read in reads] == [0] * 16
    calls = [entry for entry in seen.log if isinstance(entry, tuple)]
    assert len(calls) == 32
    image = FaultyImage(64, late=True, slots=1)
    seen = Seen()
    with bench([image], "faulty", filters=(seen,)) as disk:  # told at once, and asked again
        reads = [disk.read(n * 512, 512) for n in range(16)]
        disk.drain()
        assert [read.status for read in reads] == [0] * 16
    assert len([entry for entry in seen.log if isinstance(entry, tuple)]) == 32


# ---- open, close -----------------------------------------------------------------------------


def test_descriptors_come_back_also_where_a_filter_refuses_the_disk() -> None:
    class Refuses(Filter):
        def opened(self, dd: tapcore.DiskDriver) -> None:
            raise OSError(errno.EACCES, "no")

    before = open_fds()
    seen, image = Seen(), FaultyImage(8)
    with bench([FaultyImage(8)], "faulty", filters=both()) as disk:
        assert disk.run(READ, 0, 512).status == 0
    with pytest.raises(TapError, match="Permission denied"):
        bench([image], "faulty", filters=(Refuses(), seen)).__enter__()
    assert image.closes == 1
    assert seen.log == ["opened", "closed"]
    assert open_fds() == before


def test_the_answers_that_wait_are_given_when_the_disk_is_closed() -> None:
    late = Answers(answered=lambda call, *answer: call.answer(*answer, after=60))
    image = FaultyImage(8)
    with bench([image], "faulty", filters=(late,)) as disk:
        read = disk.read(0, 512)
        assert not read.done
    assert read.status == 0


def test_views_have_no_filters_and_so_are_refused() -> None:
    """What is written to a view would be seen by none."""
    from tapcore.views.template import Template

    said = pytest.raises(UsageError, match="has filters, which would not see")
    with tapcore.open("ram:1M", filters=(Seen(),), readonly=False) as disk, said:
        Template(disk.state)


def test_a_registry_gives_each_disk_its_filters() -> None:
    registry = Registry(discover=False)
    registry.register_filter("told", Told)
    options = OpenOptions(filters=("told:size=1",))
    assert options.filters == ("told:size=1",)
    with pytest.raises(TypeError, match="not a text"):
        tapcore.open("ram:1M", filters="told:size=1", readonly=False)

"""The page of a disk for a browser: rates over time, and its map."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import attrs
import pytest
from monitored import Checked, counted, get_page, snapshot
from servedhere import running
from sketches import make_family, sketched

from tapcore.daemon.daemon import Daemon
from tapcore.daemon.maps import draw_disks
from tapcore.daemon.verbs import Later
from tapcore.metrics.meter import Batch, Meter
from tapcore.metrics.reading import Snapshot
from tapcore.monitor import http
from tapcore.monitor.diskpage import diskpage
from tapcore.monitor.history import LOOKED_AT_SECONDS, SAMPLE_SECONDS, SAMPLES, History, Sample
from tapcore.monitor.maps import Drawn, Maps, Tell
from tapcore.monitor.webpage import webpage
from tapcore.monitor.webserver import WebServer
from tapcore.nbd.listening import UnixAddress
from tapcore.process.timer import Timer
from tapcore.tools.openimage import open_image
from tapcore.tools.serve import nbd_server
from tapcore.tools.sketch import SketchFailedError

pytest.importorskip("prometheus_client", reason="tapcore[metrics] is not installed")

from tapcore.monitor.monitor import Monitor

NASTY = "<b>&\"'/ü?"


def parsed(body: bytes | str) -> Checked:
    """A page that is whole, and has no script."""
    page = Checked()
    page.feed(body if isinstance(body, str) else body.decode())
    assert page.open == []
    assert "script" not in page.seen
    return page


# ---- rates over time ----------------------------------------------------------------------------


def test_samples_are_what_has_come_in_a_second() -> None:
    now, meter = [100.0], Meter(Batch(), "vm1", size=1 << 30, image="i", driver="aio")

    def look() -> Snapshot:
        return attrs.evolve(counted(meter), started=1.0)

    history = History(lambda: [look()], lambda: now[0])
    history.take()
    assert history.of(look()) == ()  # one look says nothing of rates
    meter.reads += [4096] * 90
    meter.count_moved(30e-6)
    now[0] += 2
    history.take()
    assert history.of(look()) == (Sample(45.0, 0.0, 45 * 4096.0),)
    for _ in range(2 * SAMPLES):
        now[0] += 1
        history.take()
    assert history.of(look()) == (Sample(0.0, 0.0, 0.0),) * SAMPLES


def test_samples_of_another_process_begin_anew() -> None:
    now, seen = [100.0], [attrs.evolve(snapshot(), started=1.0)]
    history = History(lambda: seen, lambda: now[0])
    history.take()
    history.take()
    assert len(history.of(seen[0])) == 1
    seen[0] = attrs.evolve(seen[0], started=2.0, cells={})
    history.take()
    assert history.of(seen[0]) == ()


class Told(Timer):
    """A timer that is told when it is time."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[tuple[float, Callable[[], object]]] = []

    def put(self, seconds: float, do: Callable[[], object]) -> None:
        self.due.append((seconds, do))


def test_samples_are_taken_only_while_somebody_looks() -> None:
    now, looks, timer = [0.0], [0], Told()

    def look() -> list[Snapshot]:
        looks[0] += 1
        return []

    history = History(look, lambda: now[0])
    history.live_in(timer)
    assert timer.due == []
    history.looked_at()
    history.looked_at()  # no second row of samples
    assert (looks[0], len(timer.due)) == (1, 1)
    while timer.due:
        seconds, do = timer.due.pop()
        assert seconds == SAMPLE_SECONDS
        now[0] += seconds
        do()
    assert now[0] == LOOKED_AT_SECONDS + 1
    history.looked_at()
    assert len(timer.due) == 1
    timer.abandon()


def test_rates_are_drawn() -> None:
    samples = [Sample(10.0, 0.0, 5e6), Sample(1234.0, 0.0, 1.5e6)]
    _, body = webpage([(snapshot(), snapshot())], lambda seen: samples)
    page = parsed(body)
    assert page.seen.count("figure") == page.seen.count("path") == 3
    assert "reads a second: 1,234, at most 1,234" in page.text
    assert "MB a second: 1.5, at most 5.0" in page.text


# ---- the page -----------------------------------------------------------------------------------


def page_of(monitor: Monitor, path: str) -> tuple[str, bytes]:
    """Status line and body of a page."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head, _, body = http.answer(request.encode(), monitor).partition(b"\r\n\r\n")
    return head.decode().split("\r\n")[0], body


def test_a_disk_has_a_page_under_any_name() -> None:
    asked: list[tuple[str, Tell]] = []
    seen = attrs.evolve(snapshot(), name=NASTY)
    monitor = Monitor(lambda: [seen], lambda name, tell, later: asked.append((name, tell)))
    front = parsed(page_of(monitor, "/")[1])
    (link,) = (each.removeprefix("href=") for each in front.loaded if "/disk/" in each)
    status, body = page_of(monitor, link)
    assert status == "HTTP/1.1 200 OK"
    page = parsed(body)
    assert "The map is being made." in page.text
    assert NASTY in page.text
    assert "b" not in page.seen  # no tag came of it
    page_of(monitor, link)
    assert [name for name, _ in asked] == [NASTY]  # asked once
    asked[0][1](Drawn(why="<i>busy"))
    assert "There is no map: <i>busy" in parsed(page_of(monitor, link)[1]).text


@pytest.mark.parametrize("path", ["/disk", "/disk/", "/disk/x", "/disk/vm1/", "/disk/%FF", "/d"])
def test_other_disks_have_no_page(path: str) -> None:
    asked: list[str] = []
    monitor = Monitor(lambda: [snapshot()], lambda name, tell, later: asked.append(name))
    assert page_of(monitor, path)[0] == "HTTP/1.1 404 Not Found"
    assert asked == []


def test_a_map_is_kept_and_made_again_when_it_is_old() -> None:
    now, asked = [100.0], list[Tell]()
    maps = Maps(lambda name, tell, later: asked.append(tell), lambda: now[0])
    assert maps.of("a", 1.0)[0] is None
    now[0] += 3  # so long it takes
    asked[0](Drawn("<svg/>"))
    now[0] += 29
    assert maps.of("a", 1.0) == (Drawn("<svg/>"), 29.0)
    assert len(asked) == 1
    now[0] += 2  # ten times as long
    assert maps.of("a", 1.0) == (Drawn("<svg/>"), 31.0)  # meanwhile, the old one
    assert maps.of("a", 1.0) == (Drawn("<svg/>"), 31.0)
    assert len(asked) == 2
    asked[1](Drawn(why="no"))
    assert maps.of("a", 1.0) == (Drawn(why="no"), 0.0)


def test_a_map_of_another_disk_that_had_the_name_is_not_shown() -> None:
    asked = list[Tell]()
    maps = Maps(lambda name, tell, later: asked.append(tell), lambda: 1.0)
    maps.of("a", 1.0)
    assert maps.of("a", 2.0)[0] is None
    asked[0](Drawn("<svg/>"))
    assert maps.of("a", 2.0)[0] is None
    asked[1](Drawn("<svg>2</svg>"))
    assert maps.of("a", 2.0)[0] == Drawn("<svg>2</svg>")


# ---- served -------------------------------------------------------------------------------------


@pytest.fixture
def family(toys: Path) -> Path:
    """A directory with a chain of two toys."""
    make_family()
    return toys


def when_drawn(port: int, path: str) -> str:
    """The page, as soon as it has its map."""
    end = time.monotonic() + 60
    while "The map is being made." in (body := get_page(port, path)):
        assert time.monotonic() < end
        time.sleep(0.02)
    return body


def test_a_server_shows_the_map_of_an_export(family: Path, tmp_path: Path) -> None:
    server = nbd_server(["<top>.toy"], UnixAddress("s"), names=[NASTY], metrics="0", readonly=True)
    assert server._metrics is not None
    web = server._metrics._beside
    assert isinstance(web, WebServer)
    with running(server):
        front = parsed(get_page(web.port, "/"))
        (link,) = (each.removeprefix("href=") for each in front.loaded if "/disk/" in each)
        body = when_drawn(web.port, link)
    page = parsed(body)
    assert "data in <top>.toy (depth 0)" in page.text
    assert "data in base.toy (depth 1)" in page.text
    assert body.count("<svg") == body.count("</svg>")
    assert "<?xml" not in body


def told_by_daemon(answer: Callable[[Later], object]) -> Drawn:
    """What a daemon draws of what the process of a disk answers."""
    later, found = Later(), list[Drawn]()
    process = SimpleNamespace(remote=SimpleNamespace(call=lambda *args, **how: later))
    disk = SimpleNamespace(name="vm1", process=process)
    draw_disks(cast(Daemon, SimpleNamespace(disk=lambda name: disk)))(
        "vm1", found.append, lambda seconds, do: None
    )
    assert found == []
    answer(later)
    (drawn,) = found
    return drawn


def test_a_daemon_draws_what_can_be_true(family: Path) -> None:
    with open_image("base.toy") as disk:
        good = sketched(disk.state)[0].as_dict()
    assert told_by_daemon(lambda later: later.answer(good)).svg.startswith("<svg ")
    lie = good | {"images": [good["images"][0] | {"size": -1}]}
    assert "cannot be true" in told_by_daemon(lambda later: later.answer(lie)).why
    busy = SketchFailedError("busy")
    assert told_by_daemon(lambda later: later.fail(busy)) == Drawn(why="busy")


def test_what_a_process_names_its_images_is_text(family: Path) -> None:
    with open_image("base.toy") as disk:
        told = sketched(disk.state)[0].as_dict()
    told["images"][0] |= {"name": "</svg><script>x</script>", "handle": "<script>"}
    drawn = told_by_daemon(lambda later: later.answer(told))
    _, body = diskpage(snapshot(), (), drawn, 1.0)
    assert "<script>" in parsed(body).text


def test_a_disk_without_a_process_has_no_map() -> None:
    found = list[Drawn]()
    disk = SimpleNamespace(name="vm1", process=None, state="lost", reason="it died")
    daemon = cast(Daemon, SimpleNamespace(disk=lambda name: disk))
    draw_disks(daemon)("vm1", found.append, lambda seconds, do: None)
    assert found == [Drawn(why="is lost: it died")]

"""A ring at a real socket: what it is there for, and a time of rest, and its end."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ringbench import content
from ringserved import SIZE, Here, served

from tapcore.engine.loop import NOTHING_TO_DO
from tapcore.errors import IOFailedError
from tapcore.ring.client import RingClient
from tapcore.ring.dump import debug_fe_ring
from tapcore.ring.wire import X86_32, Op, Status


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with served(tmp_path) as running:
        yield running


# ---- what it is there for ----------------------------------------------------------------------


@pytest.mark.parametrize("handle", ["sync", "aio"])
@pytest.mark.parametrize("order", [0, 2])
def test_a_client_reads_writes_flushes_and_discards(
    tmp_path: Path, handle: str, order: int
) -> None:
    with served(tmp_path, handle) as here, RingClient(here.path, order=order) as client:
        assert client.size == SIZE
        assert client.read(0, SIZE) == here.content
        assert client.read(1536, 100 * 512) == here.content[1536 : 1536 + 51200]
        new = content(7, 300 * 512)
        client.write(2560, new)
        client.flush()
        client.barrier()
        assert client.read(2560, len(new)) == new
        client.discard(0, 65536)
        assert client.read(0, 65536) == bytes(65536)
        assert (
            client.read(65536, SIZE - 65536)
            == (here.content[:2560] + new + here.content[2560 + len(new) :])[65536:]
        )


@pytest.mark.parametrize("options", [{"protocol": X86_32}, {"data_pages": 12}, {"data_pages": 1}])
def test_clients_with_rings_of_other_kinds(here: Here, options: dict[str, Any]) -> None:
    with RingClient(here.path, **options) as client:
        length = 4096 if options.get("data_pages") == 1 else 65536
        if "data_pages" not in options:
            assert client.read(512, length) == here.content[512 : 512 + length]
        for number in range(20):
            at = number * 1024
            assert client.read(at, 4096) == here.content[at : at + 4096]


def test_many_at_a_time_in_any_order(here: Here) -> None:
    rng = random.Random(3)
    with RingClient(here.path) as client:
        wanted: dict[int, int] = {}
        answered = 0
        while answered < 500:
            while client.front.room_for(8192) and len(wanted) < 30:
                at = rng.randrange(SIZE // 512 - 16) * 512
                made = client.front.read(at, 8192)
                wanted[made.id] = at
            for made in client.wait(rng.randint(1, len(wanted))):
                at = wanted.pop(made.id)
                assert client.front.content(made) == here.content[at : at + 8192]
                client.front.done(made)
                answered += 1


def test_two_front_ends_at_a_time_see_each_other_s_writes(here: Here) -> None:
    with RingClient(here.path) as one, RingClient(here.path) as two:
        one.write(4096, b"a" * 4096)
        assert two.read(4096, 4096) == b"a" * 4096
        two.write(4096, b"b" * 512)
        assert one.read(4096, 1024) == b"b" * 512 + b"a" * 512


def test_an_error_is_told_and_the_next_request_is_served(here: Here) -> None:
    with RingClient(here.path) as client:
        with pytest.raises(IOFailedError, match="READ has failed"):
            client.read(SIZE - 512, 1024)
        with pytest.raises(IOFailedError, match="DISCARD has failed") as caught:
            client.finish(client.front.discard(0, 512, flag=1))
        assert caught.value.errno == errno.EOPNOTSUPP
        assert client.read(0, 512) == here.content[:512]
        assert not client.front.pending


def test_a_read_only_ring_on_a_disk_that_can_be_written(tmp_path: Path) -> None:
    with served(tmp_path, read_only=True) as here, RingClient(here.path) as client:
        assert client.offer.read_only
        assert client.offer.info & 4
        with pytest.raises(IOFailedError):
            client.write(0, bytes(512))
        assert client.read(0, 512) == here.content[:512]


def test_a_disk_of_large_sectors_is_counted_in_small_ones(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    dd = here.engine.disk.disks
    monkeypatch.setattr(dd, "sector_size", 4096)
    here.call(here.engine.refresh)
    with RingClient(here.path) as client:
        assert client.offer.sector_size == 4096
        assert client.size == SIZE
        assert client.read(512, 1024) == here.content[512:1536]
        client.write(1024, b"x" * 512)
        assert client.read(0, 4096) == here.content[:1024] + b"x" * 512 + here.content[1536:4096]


# ---- pause, end, dump --------------------------------------------------------------------------


def test_a_pause_is_a_time_without_answers(here: Here) -> None:
    with RingClient(here.path, timeout=0.1) as client:
        assert client.read(0, 512) == here.content[:512]
        here.call(here.engine.hold)
        made = client.front.read(0, 512)
        with pytest.raises(IOFailedError, match="does not answer"):
            client.finish(made)
        assert not here.call(lambda: here.server.busy)
        client._timeout = 30
        here.call(here.engine.release)
        assert client.finish(made) == here.content[:512]


def test_who_connects_in_a_pause_is_answered_after_it(here: Here) -> None:
    here.call(here.engine.hold)
    with RingClient(here.path) as client:
        made = client.front.read(0, 512)
        client.kick()
        here.call(bool)
        assert not client.front.answered()
        here.call(here.engine.release)
        assert client.finish(made) == here.content[:512]


def test_a_server_that_stops_answers_what_it_has_taken(tmp_path: Path) -> None:
    with served(tmp_path, "aio") as here:
        client = RingClient(here.path)
        made = [client.front.read(number * 65536, 65536) for number in range(5)]
        client.kick()
        here.call(here.server.stop)
        with pytest.raises(IOFailedError, match="has gone"):
            list(iter(client.wait, None))
        statuses = [each.status for each in made]
        assert set(statuses) <= {None, Status.OKAY}  # not taken, or answered
        client.close()
        assert here.call(lambda: here.server.connections) == []


def test_debug_fe_ring_prints_what_its_name_promises(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    here.call(lambda: debug_fe_ring(here.engine.disk))
    assert capsys.readouterr().err.endswith("disk.img: 0 rings\n")
    with RingClient(here.path) as client:
        client.read(0, 4096)
        client.front.write(0, bytes(512), Op.WRITE)
        here.call(here.engine.hold)
        client.kick()
        here.call(lambda: debug_fe_ring(here.engine.disk))
        event = client.ring.shared.indices[3]  # 2 where it had to sleep
        assert capsys.readouterr().err.splitlines()[1:] == [
            "ring 0: x86_64-abi, 32 slots, 352 data pages, held",
            f"  shared:  req_prod 2, req_event 2, rsp_prod 1, rsp_event {event}",
            "  private: req_cons 1, rsp_prod_pvt 1",
            "  0 busy, 0 bytes of private buffers",
        ]


# ---- what a batch is spared --------------------------------------------------------------------


def test_what_the_lane_did_alone_needs_no_end_of_the_batch(here: Here) -> None:
    with RingClient(here.path) as client:
        client.read(0, 512)

        def kicked() -> object:
            client.ring.push()  # nobody is told but here
            (connection,) = here.server.connections
            return connection._kicked(0)

        made = client.front.read(4096, 4096)
        assert here.call(kicked) is NOTHING_TO_DO
        assert client.finish(made) == here.content[4096:8192]
        made = client.front.write(4096, b"a" * 4096)
        assert here.call(kicked) is NOTHING_TO_DO
        client.finish(made)
        made = client.front.flush()  # the engine's
        assert here.call(kicked) is None
        client.finish(made)
        here.call(here.engine.hold)
        made = client.front.read(4096, 4096)
        assert here.call(kicked) is None
        assert made.status is None
        here.call(here.engine.release)
        assert client.finish(made) == b"a" * 4096

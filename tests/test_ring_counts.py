"""What the requests of one front end add to a meter: errors, and what nobody waits for any more."""

import random

from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import bench
from ringbench import Rig

from tapcore.metrics.meter import Batch, Meter
from tapcore.metrics.operations import OPERATIONS
from tapcore.ring.wire import X86_64, Op, Status

SECTORS = 64
OKAY, ERROR, EOPNOTSUPP = Status.OKAY, Status.ERROR, Status.EOPNOTSUPP


def counted(meter: Meter) -> dict[str, tuple[int, int, int]]:
    """Of each operation: requests answered, errors, bytes; all are of one size class."""
    return {
        OPERATIONS[operation]: (cell.answered, cell.errors, cell.bytes)
        for operation, _, cell in meter.cells()
    }


def test_errors_of_the_driver_and_refusals_are_counted_as_such() -> None:
    image = FaultyImage(
        SECTORS, late=True, submit_faults={0: OSError(5, "bad")}, flush_faults={0: -5}
    )
    meter = Meter(Batch(), "a")
    with bench([image], "faulty") as disk:
        rig = Rig(disk, meter=meter)
        assert rig.raw(Op.WRITE) == [(0, Op.WRITE, ERROR)]
        assert rig.raw(Op.WRITE) == [(0, Op.WRITE, OKAY)]
        assert rig.raw(Op.FLUSH_DISKCACHE, 0, []) == [(0, Op.FLUSH_DISKCACHE, ERROR)]
        assert rig.raw(Op.FLUSH_DISKCACHE, 0, []) == [(0, Op.FLUSH_DISKCACHE, OKAY)]
        assert rig.raw(Op.WRITE_BARRIER, 0) == [(0, Op.WRITE_BARRIER, OKAY)]
        assert counted(meter) == {"write": (3, 1, 8192), "flush": (2, 1, 0)}
        assert rig.raw(Op.READ, SECTORS) == [(0, Op.READ, ERROR)]
        assert rig.raw(Op.READ, 0, [(99, 0, 7)]) == [(0, Op.READ, ERROR)]
        assert rig.raw(9, 0, []) == [(0, 9, EOPNOTSUPP)]
        assert counted(meter)["read"] == (2, 2, 0)
        assert counted(meter)["other"] == (1, 1, 0)
        assert not meter.in_flight
        rig.back.leave()
    assert meter.gone == 0


def test_a_wait_for_a_barrier_is_a_part_of_the_time() -> None:
    image, meter = LateImage(SECTORS, now=0.0, seed=3), Meter(Batch(), "a")
    with bench([image], "latefull", rng=random.Random(2)) as disk:
        rig = Rig(disk, meter=meter)
        rig.front.write(0, bytes(4096))
        rig.front.barrier()
        read = rig.front.read(0, 4096)
        rig.kick()
        ((_, entry, taken),) = [each for each in rig.back.waiting if each[1][0] == Op.READ]
        assert X86_64.head.unpack_from(entry)[2] == read.id
        assert taken == disk.engine.lane.now > 0
        assert meter.in_flight == 3
        assert rig.finish(read) == OKAY
    (cell,) = (cell for operation, _, cell in meter.cells() if OPERATIONS[operation] == "read")
    assert (cell.answered, cell.driven, cell.bytes) == (1, 1, 4096)


def test_what_a_front_end_had_in_flight_when_it_went_is_gone_and_not_answered() -> None:
    image, meter = LateImage(SECTORS, now=0.0, seed=3), Meter(Batch(), "a")
    with bench([image], "latefull", rng=random.Random(2)) as disk:
        rig = Rig(disk, meter=meter)
        for number in range(4):
            rig.front.write(number * 4096, bytes(4096))
        rig.front.barrier()
        rig.front.read(0, 4096)
        rig.kick()
        assert meter.in_flight == 6
        answered = sum(each for each, _, _ in counted(meter).values())
        rig.back.leave()
        assert (meter.gone, meter.in_flight, answered) == (6, 0, 0)
        while disk.engine.in_flight:
            disk.step()
        assert counted(meter) == {}

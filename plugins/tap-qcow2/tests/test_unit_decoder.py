"""Entries that go on alike, told as by looking at each."""

import random
from array import array

from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import COPIED, UNALLOCATED
from tap_qcow2.ondisk.layout import Geometry


def test_holes_are_counted_up_to_where_they_end(rng: random.Random) -> None:
    decoder = Decoder(Geometry(16, False), 3, elsewhere=False)
    for _ in range(200):
        entries = array("Q", bytes(8 * 1000))
        at = rng.randrange(1000)
        last = min(at + rng.choice((0, 3, 15, 255, 256, 257, 900)), 999)
        other = rng.randrange(at + 1, 1001)
        if other < 1000:
            entries[other] = rng.choice((COPIED | 65536, 1, 1 << 9, 1 << 62))
        assert decoder.run(entries, at, last) == (UNALLOCATED, 0, min(other, last + 1) - at)

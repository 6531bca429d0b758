"""Where a text lies on a disk, looked for by all processors: search.py IMAGE TEXT."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import tapcore

PIECE = 8 << 20


def found_in(disk: tapcore.Disk, text: bytes, start: int) -> list[int]:
    """Offsets of the text that begin in one piece; the disk has come here by pickling."""
    content = disk.pread(start, length=min(PIECE + len(text) - 1, disk.size - start))
    places = []
    at = content.find(text)
    while at >= 0:
        places.append(start + at)
        at = content.find(text, at + 1)
    return places


def main(image: str, text: bytes) -> None:
    """Print every offset in bytes."""
    with (
        tapcore.open(image) as disk,
        ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes,
    ):
        search = partial(found_in, disk, text)
        for places in processes.map(search, range(0, disk.size, PIECE)):
            for place in places:
                print(place)


if __name__ == "__main__":
    main(sys.argv[1], os.fsencode(sys.argv[2]))

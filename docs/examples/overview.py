"""How full many disks are, several looked at at a time, with asyncio: overview.py IMAGE..."""

import asyncio
import sys
from collections.abc import Sequence

import tapcore

AT_ONCE = 8


async def used(image: str, room: asyncio.Semaphore) -> str:
    """A line: bytes that hold data, of how many."""
    async with room, tapcore.aopen(image, parents="any") as disk:
        runs = await disk.extents()
        held = sum(run.length for run in runs if run.kind != "zero")
        return f"{image}: {held} of {disk.size} bytes"


async def main(images: Sequence[str]) -> None:
    """Print the lines in the order of the images."""
    room = asyncio.Semaphore(AT_ONCE)
    for line in await asyncio.gather(*(used(image, room) for image in images)):
        print(line)


asyncio.run(main(sys.argv[1:]))

"""The three ways in which a plain file is served: `@pytest.mark.parametrize("kind", KINDS)`."""

from pathlib import Path

import tapcore

KINDS = ("aio", "aio-direct", "sync")


def open_raw(kind: str, path: Path | str, *, readonly: bool = False) -> tapcore.Disk:
    """Open a file or block device in one of `KINDS`."""
    handle, _, direct = kind.partition("-")
    return tapcore.open(
        f"{handle}:{path}", readonly=readonly, cache="none" if direct else "writeback"
    )

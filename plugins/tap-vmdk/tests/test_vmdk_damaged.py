"""Whatever is damaged in a VMDK, every operation ends with an answer, or an error with words.

`TAPCORE_THOROUGH=10` looks at ten times as many damaged images.
"""

import contextlib
import logging
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from test_vmdk_repair import BASE_CID
from vmdkharm import write
from vmdkmutator import KINDS, damage, make

import tapcore
from tapcore.tools.check import check_image
from tapcore.tools.commit import commit_image
from tapcore.tools.map import map_disk
from vmdkwriters import descriptor, hosted

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

Use = Callable[[tapcore.Disk, random.Random], object]


def _span(disk: tapcore.Disk, rng: random.Random) -> tuple[int, int]:
    end = min(disk.size, 1 << 20)
    unit = max(disk.cluster_size, 512)
    at = rng.randrange(end) // unit * unit
    return at, max(min(unit * rng.choice((1, 3, 40)), end - at), 0)


def _write(disk: tapcore.Disk, rng: random.Random) -> None:
    at, length = _span(disk, rng)
    disk.pwrite(at, rng.randbytes(length))


def _zero(disk: tapcore.Disk, rng: random.Random) -> None:
    at, length = _span(disk, rng)
    disk.zero(at, length=length)


def _discard(disk: tapcore.Disk, rng: random.Random) -> None:
    at, length = _span(disk, rng)
    disk.discard(at, length=length)


def _read(disk: tapcore.Disk, rng: random.Random) -> None:
    at, length = _span(disk, rng)
    disk.pread(at, length=length)


def _map(disk: tapcore.Disk, rng: random.Random) -> None:
    for _ in map_disk(disk):
        pass


USES: tuple[Use, ...] = (
    _read,
    _write,
    _zero,
    _discard,
    _map,
    lambda disk, rng: disk.info(),
    lambda disk, rng: disk.sync(),
    lambda disk, rng: disk.resize((disk.size + 512 * rng.choice((1, 100, 100000))) // 512 * 512),
)


@pytest.mark.timeout(120 * THOROUGH)
def test_no_operation_raises_anything_but_an_error_with_words(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    base = hosted(
        rng.randbytes(1024 * 512),
        text=descriptor("monolithicSparse", ['RW 1024 SPARSE "base.vmdk"']),
    )
    for number in range(25 * THOROUGH):
        (tmp_path / "base.vmdk").write_bytes(base)
        kind = KINDS[number % len(KINDS)]
        seed = rng.getrandbits(64)
        mine = random.Random(seed)
        made = make(kind, mine, BASE_CID)
        (sectors,) = struct.unpack_from("<Q", made.raw, 12)
        damage(made, mine)
        write(tmp_path, made, sectors)
        name = f"vmdk:{tmp_path}/disk.vmdk"
        with contextlib.suppress(tapcore.TapError), tapcore.open(name, readonly=False) as disk:
            for _ in range(12):
                with contextlib.suppress(tapcore.TapError):
                    mine.choice(USES)(disk, mine)
        for work in (check_image, commit_image):
            with contextlib.suppress(tapcore.TapError):
                work(name)
        broken = [r.getMessage() for r in caplog.records if r.exc_info or r.levelno > logging.ERROR]
        assert not broken, f"{kind} of seed {seed}: {broken[0]}"
        caplog.clear()


@pytest.mark.parametrize("name", ["disk-s001.vmdk", "./disk-s001.vmdk", "soft.vmdk", "hard.vmdk"])
@pytest.mark.parametrize(
    ("first", "second"), [("SPARSE", "SPARSE"), ("SPARSE", "FLAT"), ("FLAT", "SPARSE")]
)
@pytest.mark.parametrize("access", ["RW", "RDONLY"])
def test_a_sparse_file_is_one_extent_by_whatever_name(
    tmp_path: Path, rng: random.Random, name: str, first: str, second: str, access: str
) -> None:
    """Whoever writes one of the two would write over the tables of the other."""
    (tmp_path / "disk-s001.vmdk").write_bytes(hosted(rng.randbytes(1 << 16)))
    (tmp_path / "soft.vmdk").symlink_to("disk-s001.vmdk")
    (tmp_path / "hard.vmdk").hardlink_to(tmp_path / "disk-s001.vmdk")
    lines = [
        f'{access} 128 {kind} "{file}"' + (" 0" if kind == "FLAT" else "")
        for kind, file in ((first, "disk-s001.vmdk"), (second, name))
    ]
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("custom", lines))
    with pytest.raises(tapcore.ImageFormatError, match=r"names the sparse extent .* twice"):
        tapcore.open(f"vmdk:{image}", readonly=True)
    assert check_image(f"vmdk:{image}").corruptions == 1

"""VHDXs that lack their end: what a block lacks is lost, and nobody carries on zeroes."""

import random
from pathlib import Path

from cutimages import cut_anywhere, cut_inside_the_last_cluster, mixed_content

import tapcore

MIB = 1 << 20


def test_cut_anywhere_it_fails_or_is_right(tmp_path: Path, rng: random.Random) -> None:
    image, want = tmp_path / "a.vhdx", mixed_content(rng, 4 * MIB, 65536)
    tapcore.create_image(f"vhdx:{image}", len(want))
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, want)
    cut_anywhere("vhdx", image, want, rng, whole=True)


def test_what_the_last_block_lacks_is_lost(tmp_path: Path) -> None:
    image = tmp_path / "a.vhdx"
    tapcore.create_image(f"vhdx:{image}", 64 * MIB)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        want = b"x" * disk.cluster_size
        disk.pwrite(0, want)
    cut_inside_the_last_cluster("vhdx", image, want)

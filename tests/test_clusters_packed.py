"""Compressed clusters that are wanted together: read together, each with a failure of its own."""

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import attrs
import pytest

from tapcore.clusters import PACKED, DeflatedClusters, Run
from tapcore.clusters.packed import PackedContent
from tapcore.errors import ImageFormatError, TapError
from tapcore.files import ImageFile
from tapcore.formats.deflate import deflate

SIZE = 64 << 10
SECTORS = SIZE >> 9
DAMAGED, MISSING = 3, 6
"""Numbers of clusters of which the stream is damaged, and lies past the end of the file."""


@attrs.define
class Packed:
    """A file of compressed clusters; a token is a cluster's number."""

    file: ImageFile
    contents: list[bytes]
    places: list[tuple[int, int]]

    def clusters(self) -> DeflatedClusters:
        return DeflatedClusters(self.file, SIZE, self.places.__getitem__)


@pytest.fixture
def packed(tmp_path: Path, rng: random.Random) -> Iterator[Packed]:
    contents = [rng.randbytes(512) * (SIZE // 512) for _ in range(8)]
    stored, places = bytearray(512), []
    for content in contents:
        stream = deflate(content)
        places.append((len(stored), len(stream)))
        stored += stream
    path = tmp_path / "packed"
    path.write_bytes(stored)
    file = ImageFile(os.open(path, os.O_RDWR), str(path), read_only=False)
    yield Packed(file, contents, places)
    file.close()


def harm(packed: Packed) -> None:
    offset, length = packed.places[DAMAGED]
    os.pwrite(packed.file.fd, b"\xff" * length, offset)
    packed.places[MISSING] = (1 << 30, 512)


def test_neighbours_are_read_by_one_call(packed: Packed) -> None:
    with patch.object(ImageFile, "read_metadata", autospec=True, side_effect=read) as reads:
        assert list(packed.clusters().unpack_many(range(8))) == packed.contents
    assert reads.call_count == 1


def test_what_lies_far_apart_is_read_one_by_one(packed: Packed) -> None:
    offset, length = packed.places[7]
    os.pwrite(packed.file.fd, os.pread(packed.file.fd, length, offset), 64 << 20)
    packed.places[7] = (64 << 20, length)
    packed.file.look_again()
    with patch.object(ImageFile, "read_metadata", autospec=True, side_effect=read) as reads:
        assert list(packed.clusters().unpack_many(range(8))) == packed.contents
    assert max(call.args[2] for call in reads.call_args_list) <= SIZE


read = ImageFile.read_metadata


def test_of_many_each_fails_as_it_does_alone(packed: Packed) -> None:
    harm(packed)
    clusters = packed.clusters()
    found = list(clusters.unpack_many(range(8)))
    for number, each in enumerate(found):
        if number not in (DAMAGED, MISSING):
            assert each == packed.contents[number]
            continue
        assert isinstance(each, ImageFormatError)
        with pytest.raises(TapError) as caught:
            clusters.unpack(number)
        assert str(each) == str(caught.value)


@pytest.mark.parametrize("harmed", [False, True])
def test_whole_clusters_that_follow_each_other_are_answered_at_once(
    packed: Packed, harmed: bool
) -> None:
    if harmed:
        harm(packed)
    content = PackedContent(packed.file, packed.clusters(), SIZE, lambda then: then)
    buffer = bytearray(8 * SIZE)
    answers: list[tuple[int, int, int]] = []

    def answer(res: int, sector: int, nb_sectors: int) -> int:
        answers.append((res, sector // SECTORS, nb_sectors // SECTORS))
        return 0

    def failed(found: Exception, run: Run, buf: memoryview, answer: object) -> int:
        assert isinstance(found, ImageFormatError)
        answers.append((-5, run.sector // SECTORS, 1))
        return 0

    for number in range(8):
        view = memoryview(buffer)[number * SIZE : (number + 1) * SIZE]
        run = Run(PACKED, number * SECTORS, SECTORS, number)
        assert content.read_whole(run, view, answer, failed) == 0
    content.submit()
    packed.file.drain()
    if not harmed:
        assert answers == [(0, 0, 8)]
        assert buffer == b"".join(packed.contents)
        return
    assert answers == [(0, 0, 3), (-5, DAMAGED, 1), (0, 4, 2), (-5, MISSING, 1), (0, 7, 1)]
    assert buffer[7 * SIZE :] == packed.contents[7]


def test_what_others_write_is_unpacked_with_any_window(packed: Packed) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = stream.compress(packed.contents[0]) + stream.flush()
    os.pwrite(packed.file.fd, data, 1 << 20)
    packed.places[0] = (1 << 20, len(data))
    packed.file.look_again()
    assert list(packed.clusters().unpack_many(range(8))) == packed.contents


def test_clusters_out_of_order_are_read_by_one_call_for_each_place(packed: Packed) -> None:
    """As `qemu-img convert -W` leaves them: some here, some there, in any order."""
    clusters = packed.clusters()
    for number in (1, 4, 6):
        offset, length = packed.places[number]
        there = (8 << 20) + number * 4096
        os.pwrite(packed.file.fd, os.pread(packed.file.fd, length, offset), there)
        packed.places[number] = there, length
    packed.file.look_again()
    order = [6, 0, 3, 1, 7, 2, 4, 5]
    buffer = bytearray(8 * SIZE)
    views = [memoryview(buffer)[n * SIZE : (n + 1) * SIZE] for n in order]
    with patch.object(ImageFile, "read_metadata", autospec=True, side_effect=read) as reads:
        assert list(clusters.unpack_into(order, views)) == [None] * 8
    assert reads.call_count == 2
    assert buffer == b"".join(packed.contents)


def test_what_cannot_go_straight_is_told_as_it_is_alone(packed: Packed) -> None:
    harm(packed)
    seen = []

    def into(stream: bytes, view: memoryview) -> bool:
        seen.append(len(stream))
        return False

    clusters = DeflatedClusters(packed.file, SIZE, packed.places.__getitem__, inflate_into=into)
    buffer = bytearray(8 * SIZE)
    views = [memoryview(buffer)[n * SIZE : (n + 1) * SIZE] for n in range(8)]
    for number, why in enumerate(clusters.unpack_into(range(8), views)):
        assert isinstance(why, ImageFormatError) == (number in (DAMAGED, MISSING))
        assert why is not None or views[number] == packed.contents[number]
    assert len(seen) == 7

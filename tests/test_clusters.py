"""What `tapcore.clusters` makes of a map: the cache of tables, damage, what is missing."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from drivers.toymap import CODING, SIZE, TABLE, ToyMap, ToyMapDriver, create, share_all
from hypothesis import given
from hypothesis import strategies as st

import tapcore
from tapcore.clusters import (
    Read,
    Table,
    TableCache,
    WritableClusters,
    rising_until,
    same_until,
)
from tapcore.clusters.busy import BusyClusters, Claim
from tapcore.clusters.content import InFlight
from tapcore.clusters.tables import count_from
from tapcore.files import ImageFile, open_image_file
from tapcore.interface.options import OpenOptions

SECTORS = SIZE // 512
DISK = 40 * SIZE  # five tables


def registry() -> tapcore.Registry:
    made = tapcore.Registry()
    assert not made.register(ToyMapDriver()).error
    return made


def opened(image: Path, readonly: bool = False, **options: Any) -> tapcore.Disk:
    return tapcore.open(f"toymap:{image}", readonly=readonly, registry=registry(), **options)


def map_of(disk: tapcore.Disk) -> ToyMap:
    found = disk.state.disks.private
    assert isinstance(found, ToyMap)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """With a cluster of 1s, one of zeroes, one that is packed, and two of 2s in another table."""
    path = tmp_path / "disk.toy"
    create(str(path), DISK)
    with opened(path) as disk:
        disk.pwrite(0, b"1" * SIZE)
        disk.zero(SIZE, length=SIZE)
        disk.write_compressed(2 * SIZE, b"packed! " * (SIZE // 8))
        disk.pwrite(12 * SIZE, b"2" * 2 * SIZE)
    return path


def poke(image: Path, cluster: int, place: int, bits: int = 0xFF) -> None:
    """Let the table say something else of a cluster."""
    content = bytearray(image.read_bytes())
    (table,) = CODING.decode(bytes(content[SIZE + cluster // 8 * 8 :][:8]))
    at = table + cluster % 8 * 16
    content[at : at + 16] = place.to_bytes(8, "little") + bits.to_bytes(8, "little")
    image.write_bytes(content)


def test_space_is_kept_where_a_map_does_not_say_that_it_uses_it_again(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody counts what is in flight then, and a read could find another cluster's content."""
    with patch.object(ToyMap, "reuses_space", False), opened(image) as disk:
        for at in (0, 12):
            disk.discard(at * SIZE, length=SIZE)
            disk.sync()
        assert not map_of(disk).free
        assert disk.pread(13 * SIZE, length=SIZE) == b"2" * SIZE
    assert caplog.text.count("ToyMap, frees space without `reuses_space`: it is kept") == 1
    with opened(image) as disk:
        disk.discard(13 * SIZE, length=SIZE)
        disk.sync()
        assert map_of(disk).free


# ---- busy clusters ------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 3, 7, 12])
def test_busy_clusters_are_found_as_by_looking_at_each(shift: int, rng: random.Random) -> None:
    busy = BusyClusters(shift)
    claims: list[Claim] = []
    for _ in range(60):
        if claims and rng.random() < 0.4:
            assert busy.release(claims.pop(rng.randrange(len(claims)))) == 0
        first = rng.randrange(400)
        claim = Claim(first, first + rng.choice((1, 2, 5, 40)))
        if not any(claim.first < each.end and each.first < claim.end for each in claims):
            busy.take(claim)
            claims.append(claim)
        taken = {at: each for each in claims for at in range(each.first, each.end)}
        for at in range(450):
            assert busy.at((at << shift) + rng.randrange(1 << shift)) is taken.get(at)
        for _ in range(20):
            first = rng.randrange(440)
            end = first + rng.randrange(1, 60)
            sector, stop = first << shift, (end << shift) - rng.randrange(1 << shift)
            met = next((at for at in range(first, end) if at in taken), end)
            assert busy.any_in(sector, stop) == (met < end)
            if met > first:
                assert busy.free_until(sector, stop) == (met << shift if met < end else stop)
    for claim in claims:
        busy.release(claim)
    assert not busy.claims


# ---- content in flight -------------------------------------------------------------------------


def test_a_barrier_waits_for_all_that_began_before_it_and_for_nothing_else() -> None:
    flight = InFlight()
    opened: list[str] = []
    slow = flight.counted(lambda res: res)
    flight.barrier(lambda: opened.append("first"))
    quick = flight.counted(lambda res: res)
    flight.barrier(lambda: opened.append("second"))
    later = flight.counted(lambda res: res)
    assert quick(7) == 7
    assert not opened
    slow(0)
    assert opened == ["first", "second"]
    later(0)
    flight.barrier(lambda: opened.append("third"))
    assert opened == ["first", "second", "third"]


# ---- the cache of tables ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageFile]:
    """A file of 64 tables, each of which holds its number."""
    path = tmp_path_factory.mktemp("cache") / "tables"
    path.write_bytes(b"".join(number.to_bytes(8, "little") for number in range(64)))
    file = open_image_file(str(path), tapcore.TD_RDONLY, OpenOptions())
    yield file
    file.close()


def cache_of(file: ImageFile, most: int) -> TableCache[Table]:
    def read(index: int, how: Read) -> Table | None:
        content = how(8 * index, 8)
        return None if content is None else Table(index, 8 * index, CODING.decode(content), CODING)

    return TableCache(file, read, 8, most * 208)


OPERATIONS = ["look", "look", "look", "pin", "unpin", "change", "save"]


def test_entries_that_go_on_alike_are_found_as_by_looking_at_each(rng: random.Random) -> None:
    for _ in range(60):
        entries = CODING.zeroes(0)
        while len(entries) < 1500:
            many, step = rng.choice((1, 2, 255, 256, 700)), rng.randrange(3)
            entries.extend(range(first := rng.randrange(3), first + many * step + 1, step or 1))
        for step in range(3):
            at = rng.randrange(1000)
            stop = rng.randrange(at + 1, len(entries) + 1)
            pairs = range(at + 1, stop)
            end = next((n for n in pairs if entries[n] != entries[n - 1] + step), stop)
            assert rising_until(entries, at, stop, step) == end
            assert step or same_until(entries, at, stop) == end
            same = next((n for n in range(at, stop) if entries[n] != step), stop)
            assert count_from(entries, at, stop, step) == same - at
    assert count_from(entries, len(entries), len(entries) + 9, 1) == 9


@given(st.data())
def test_the_cache_is_bounded_and_keeps_what_must_stay(tables: ImageFile, data: Any) -> None:
    most = data.draw(st.integers(2, 9))
    cache = cache_of(tables, most)
    assert cache.most == most
    pinned: list[int] = []
    cache.in_use = pinned.__contains__
    peak = 0
    for _ in range(data.draw(st.integers(0, 60))):
        index = data.draw(st.integers(0, 20))
        match data.draw(
            st.sampled_from(["look", "look", "look", "pin", "unpin", "change", "save"])
        ):
            case "pin":
                cache.wait(index)
                pinned.append(index)
            case "unpin" if pinned:
                pinned.pop()
            case "change" if not cache.full:
                cache.set(cache.wait(index), 0, [index])
            case "save":
                cache.take().conclude(ok=True, published=False)
            case _:
                assert cache.wait(index).entries[0] == index
        staying = {*pinned, *(table.index for table in cache.dirty)}
        assert all(index in cache for index in staying)
        peak = max(peak, len(staying))
        assert len(cache) <= max(most, peak) + 2


def test_a_table_in_use_outlives_many_that_are_looked_at_once(tables: ImageFile) -> None:
    cache = cache_of(tables, 8)
    first = cache.wait(0)
    for index in range(1, 64):
        cache.wait(index)
        assert cache.get(0) is first


def test_what_a_write_back_is_writing_is_not_what_the_disk_says(tables: ImageFile) -> None:
    cache = cache_of(tables, 8)
    cache.set(cache.wait(3), 0, [7])
    assert cache.unchanged_until(0, 10) == 3
    failing = cache.take()
    assert cache.unchanged_until(0, 10) == 3
    failing.conclude(ok=False, published=False)
    assert cache.unchanged_until(0, 10) == 3
    cache.take().conclude(ok=True, published=True)
    assert cache.unchanged_until(0, 10) == 10


def test_a_failed_write_back_is_done_again(tables: ImageFile) -> None:
    cache = cache_of(tables, 8)
    table = cache.wait(3)
    cache.set(table, 0, [7])
    taken = cache.take()
    assert taken.changed == [(24, (7).to_bytes(8, "little"))]
    assert not cache.take().changed
    taken.conclude(ok=False, published=False)
    assert cache.take().changed == taken.changed


@pytest.mark.parametrize("published", [False, True])
def test_a_new_table_is_written_whole_until_something_may_name_it(
    tables: ImageFile, published: bool
) -> None:
    cache = cache_of(tables, 8)
    cache.add(Table(40, 640, CODING.zeroes(128), CODING))
    taken = cache.take()
    assert taken.fresh == [(640, bytes(1024))]
    cache.set(cache.wait(40), 64, [1])  # the second block of it
    taken.conclude(ok=False, published=published)
    again = cache.take()
    assert [len(content) for _, content in again.fresh] == ([] if published else [1024])
    assert [at for at, _ in again.changed] == ([1152] if published else [])


# ---- reading ------------------------------------------------------------------------------------


def test_everything_is_found(image: Path) -> None:
    with opened(image, readonly=True) as disk:
        content = disk.pread(0, length=DISK)
        kinds = [(e.start // SIZE, e.kind, e.fd is not None) for e in disk.extents()]
    want = b"1" * SIZE + bytes(SIZE) + b"packed! " * (SIZE // 8)
    assert content[: 3 * SIZE] == want
    assert content[12 * SIZE : 14 * SIZE] == b"2" * 2 * SIZE
    assert content.count(b"\0") == DISK - 4 * SIZE
    assert kinds[:4] == [
        (0, "data", True),
        (1, "zero", False),
        (2, "compressed", False),
        (3, "zero", False),
    ]


def test_an_impossible_entry_concerns_its_cluster_alone(image: Path) -> None:
    poke(image, 1, 12345)
    with opened(image, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == b"1" * SIZE
        assert disk.pread(2 * SIZE, length=8) == b"packed! "
        with pytest.raises(
            tapcore.LostContentError, match=rf"at {SIZE + 512}: has an impossible entry"
        ):
            disk.pread(SIZE + 512, length=1024)
        assert map_of(disk).damage == ["has an impossible entry"]


def test_an_impossible_table_concerns_all_that_it_maps(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[SIZE : SIZE + 8] = (1 << 40).to_bytes(8, "little")
    image.write_bytes(content)
    with opened(image, readonly=True) as disk:
        assert disk.pread(12 * SIZE, length=SIZE) == b"2" * SIZE
        for cluster in (0, 7):
            with pytest.raises(tapcore.LostContentError, match="has an impossible table"):
                disk.pread(cluster * SIZE, length=512)
        assert not any(disk.pread(8 * SIZE, length=SIZE))


def test_a_damaged_stream_is_told_with_its_place(image: Path) -> None:
    with opened(image, readonly=True) as disk:
        run = map_of(disk).run(2 * SECTORS, 3 * SECTORS)
    assert run is not None
    place = run.where & 0xFFFF_FFFF
    content = bytearray(image.read_bytes())
    content[place : place + 4] = b"\xff" * 4
    image.write_bytes(content)
    reason = f"at offset {place:#x} of the file"
    with (
        opened(image, readonly=True) as disk,
        pytest.raises(tapcore.LostContentError, match=reason),
    ):
        disk.pread(2 * SIZE, length=512)


@pytest.mark.parametrize("missing", ["error", "zeroes"])
def test_content_past_the_end_of_the_file(image: Path, missing: str) -> None:
    """Two clusters that lie side by side: one is cut, and one is gone."""
    with opened(image, readonly=True) as disk:
        run = map_of(disk).run(12 * SECTORS, 14 * SECTORS)
    assert run is not None
    poke(image, 14, run.where + (4 << 20))
    os.truncate(image, image.stat().st_size // SIZE * SIZE - SIZE + 1024)
    with opened(image) as disk:
        last = disk.state.disks
        last.options.missing = missing  # type: ignore[assignment]
        if missing == "error":
            with pytest.raises(tapcore.LostContentError, match="lies past the end of the file"):
                disk.pread(14 * SIZE, length=SIZE)
        else:
            assert disk.pread(14 * SIZE, length=SIZE) == bytes(SIZE)
        gone = [e for e in disk.extents() if e.missing]
        assert [(e.start, e.length) for e in gone] == [(14 * SIZE, SIZE)]


# ---- writing ------------------------------------------------------------------------------------


def test_shared_content_is_copied_before_it_is_changed(image: Path) -> None:
    share_all(str(image))
    before = image.read_bytes()
    with opened(image) as disk:
        disk.pwrite(100, b"new")
        disk.pwrite(12 * SIZE + 700, b"new")
    assert image.read_bytes()[2 * SIZE :].find(b"1" * SIZE) == before[2 * SIZE :].find(b"1" * SIZE)
    with opened(image, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == b"1" * 100 + b"new" + b"1" * (SIZE - 103)
        assert disk.pread(12 * SIZE, length=704) == b"2" * 700 + b"new2"


@pytest.mark.parametrize("before", [0, 1])
def test_what_cannot_be_read_around_a_write_fails_it(
    before: int, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever side of it that is, and though the other one can be read."""
    share_all(str(image))
    read_now, reads = ImageFile.read_now, list[int]()

    def fails_once(file: ImageFile, offset: int, buf: memoryview) -> int | None:
        reads.append(offset)
        return -errno.EIO if len(reads) == before + 1 else read_now(file, offset, buf)

    with opened(image) as disk:
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "read_now", fails_once)
            with pytest.raises(tapcore.IOFailedError, match="Input/output"):
                disk.pwrite(512, b"n" * 512)
        assert len(reads) == 2
        assert disk.pread(0, length=SIZE) == b"1" * SIZE


def test_shared_content_is_not_zeroed_where_it_lies(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyMap, "zeroes_in_place", True)
    share_all(str(image))
    with opened(image) as disk:
        disk.zero(512, length=512)
    assert b"1" * SIZE in image.read_bytes()
    with opened(image, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == b"1" * 512 + bytes(512) + b"1" * (SIZE - 1024)


@pytest.mark.parametrize("cipher", ["disk", "place"])
def test_encrypted_content_is_zeroed_by_writing(
    cipher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyMap, "zeroes_in_place", True)
    image = tmp_path / "disk.toy"
    create(str(image), DISK, cipher=cipher)
    with opened(image) as disk:
        disk.pwrite(0, b"1" * SIZE)
        disk.zero(512, length=512)
        assert disk.pread(0, length=SIZE) == b"1" * 512 + bytes(512) + b"1" * (SIZE - 1024)


def test_a_table_that_cannot_be_read_fails_what_needs_it(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: whoever asks next tries again."""
    fails, read = [errno.EIO], ImageFile.read_metadata

    def read_metadata(file: ImageFile, offset: int, length: int) -> bytes:
        if fails:
            raise OSError(fails.pop(), "no")
        return read(file, offset, length)

    with opened(image, readonly=True) as disk:
        monkeypatch.setattr(ImageFile, "metadata_now", lambda *_: None)
        monkeypatch.setattr(ImageFile, "read_metadata", read_metadata)
        with pytest.raises(tapcore.IOFailedError):
            disk.pread(0, length=512)
        assert disk.pread(0, length=512) == b"1" * 512


def test_space_that_was_given_up_is_used_again(image: Path) -> None:
    with opened(image) as disk:
        for number in range(20):
            disk.discard(0, length=SIZE)
            disk.sync()
            disk.pwrite(0, bytes([number]) * SIZE)
    before = image.stat().st_size
    assert before <= 12 * SIZE


def test_after_writing_was_stopped_the_next_change_is_prepared_anew(image: Path) -> None:
    """Also one that would take the short way."""
    began: list[int] = []
    with opened(image) as disk:
        map = map_of(disk)
        with patch.object(map, "begin_writing", lambda: began.append(len(began))):
            for times in (1, 2):
                disk.pwrite(0, b"x" * 512)
                disk.pwrite(512, b"x" * 512)
                assert len(began) == times
                disk.sync()
                map.clusters.stop_writing()


def test_saving_tells_of_a_failed_write_back_that_nobody_waited_for(image: Path) -> None:
    """The kernel says only once that content is lost; who closes must not take it for saved."""
    with opened(image, metadata_cache=1200) as disk:
        map = map_of(disk)
        with patch.object(ImageFile, "flush_blocking", lambda file: -errno.EIO):
            for table in range(2):
                disk.pwrite((8 * table + 6) * SIZE, b"x" * SIZE)
                map.file.drain()
        assert map.clusters.writeback.failing
        with pytest.raises(OSError, match="Input/output"):
            map.clusters.save()
        map.clusters.save()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "no"), tapcore.ImageFormatError("is damaged", errno=errno.EIO)],
    ids=["cannot be read", "damaged"],
)
def test_what_cannot_be_linked_was_not_written(
    error: Exception, packed: bool, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise error

    content = b"n" * SIZE
    with opened(image) as disk:
        map = map_of(disk)
        write = disk.write_compressed if packed else disk.pwrite
        before = map.end - len(map.free) * SIZE
        with monkeypatch.context() as patch:
            patch.setattr(map, "link_packed" if packed else "link", fail)
            with pytest.raises(tapcore.TapError, match=r"Input/output|is damaged"):
                write(20 * SIZE, content)
        assert not map.clusters.busy
        assert map.end - len(map.free) * SIZE == before
        assert map.damage == ["is damaged"] * isinstance(error, tapcore.ImageFormatError)
        assert disk.pread(20 * SIZE, length=SIZE) == bytes(SIZE)
        write(20 * SIZE, content)
        assert disk.pread(20 * SIZE, length=SIZE) == content


def test_a_place_for_which_the_file_cannot_grow_is_given_back(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("tapcore.clusters.writing._PAGE", 512)  # more is left out of the file
    with opened(image) as disk:
        map = map_of(disk)
        disk.pwrite(20 * SIZE, b"n" * 512)  # from here on there is a table
        map.free.clear()
        before = map.end
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "truncate_up", full)
            with pytest.raises(tapcore.IOFailedError, match="No space"):
                disk.pwrite(21 * SIZE, b"n" * 512)
        assert map.free == {before}
        assert disk.pread(21 * SIZE, length=SIZE) == bytes(SIZE)


def test_the_end_of_the_last_cluster_is_discarded_alone(tmp_path: Path) -> None:
    """It is stored packed, and cut by the end of the disk."""
    image = tmp_path / "disk.toy"
    create(str(image), SIZE + 5 * 512, units="sectors")
    content = b"packed! " * (5 * 64)
    with opened(image) as disk:
        disk.write_compressed(SIZE, content)
        disk.discard(SIZE + 3 * 512, length=2 * 512)
        assert disk.pread(SIZE, length=3 * 512) == content[: 3 * 512]


def test_nothing_from_past_the_end_of_the_disk_comes_into_its_last_cluster(tmp_path: Path) -> None:
    """What a longer parent has there must not show when the disk grows."""
    image, size = tmp_path / "disk.toy", SIZE + 3 * 512
    (tmp_path / "parent").write_bytes(b"p" * 3 * SIZE)
    create(str(image), size, tapcore.DiskId("parent", "sync"))
    with opened(image) as disk:
        disk.pwrite(SIZE + 512, b"x" * 512)
        assert disk.pread(SIZE, length=3 * 512) == b"p" * 512 + b"x" * 512 + b"p" * 512
    stored = image.read_bytes().rpartition(b"x" * 512)[2]
    assert stored[: SIZE - 1024] == b"p" * 512 + bytes(SIZE - 3 * 512)


def test_a_map_of_a_part_of_a_disk_answers_by_the_disks_sectors(image: Path) -> None:
    """As of a disk of several files, of which each has tables."""
    with opened(image) as disk:
        part = WritableClusters(disk.state.disks, map_of(disk), start=1000)
        answers: list[tuple[int, int, int]] = []

        def answer(res: int, sector: int, nb_sectors: int) -> int:
            answers.append((res, sector, nb_sectors))
            return 0

        buf = memoryview(bytearray(4 * SIZE))
        assert part.place(1001, 1) == part.place(1000, 1) + 512 > 0
        assert part.place(1000 + 3 * SECTORS, 1) == -1
        part.read(1000, 4 * SECTORS, buf, answer)
        part.submit()
        part.drain()
        hole = tapcore.BLK_NOT_ALLOCATED
        in_order = sorted(answers, key=lambda given: given[1])
        assert [res for res, _, _ in in_order] == [0, 0, 0, hole]
        assert [at for _, at, _ in in_order] == [1000 + n * SECTORS for n in range(4)]
        assert bytes(buf[:SIZE]) == b"1" * SIZE
        assert [e.sector for e in part.extents(1000, 2 * SECTORS)] == [1000, 1000 + SECTORS]
        answers.clear()
        part.write(1000 + SECTORS, 1, memoryview(b"w" * 512), answer)
        part.drain()
        assert answers == [(0, 1000 + SECTORS, 1)]
        part.save()
    with opened(image, readonly=True) as disk:
        assert disk.pread(SIZE, length=1024) == b"w" * 512 + bytes(512)


def test_tables_are_few_in_memory(image: Path) -> None:
    with opened(image, metadata_cache=2 * (TABLE + 200)) as disk:
        for cluster in range(0, 40, 8):
            disk.pwrite(cluster * SIZE, b"x" * 512)
        assert len(map_of(disk).tables) <= 4
        for cluster in range(0, 40, 8):
            assert disk.pread(cluster * SIZE, length=3) == b"xxx"


def test_compressed_clusters_that_follow_each_other_are_one_extent(tmp_path: Path) -> None:
    path = tmp_path / "disk.toy"
    create(str(path), DISK)
    with opened(path) as disk:
        for cluster in (1, 2, 3, 5, 6, 7, 8):
            disk.write_compressed(cluster * SIZE, b"packed! " * (SIZE // 8))
        found = list(disk.state.disks.drv.td_extents(disk.state.disks, 0, SECTORS * 10))
    runs = [(e.sector // SECTORS, e.nb_sectors // SECTORS) for e in found if e.kind == "compressed"]
    assert runs == [(1, 3), (5, 3), (8, 1)]  # each as far as its table goes

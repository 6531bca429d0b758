"""An index is kept beside an image where it is asked for, and believed only as far as it fits."""

import gzip
import importlib
import os
import random
from pathlib import Path

import pytest

import tapcore
from tap_zraw import forward
from tap_zraw.gzip import members
from tap_zraw.zstd import frames
from tapcore import TapError
from zrawtools import KIB, KINDS, content_of, some_content

CONTENT = some_content(random.Random(7), 700 * KIB)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is loaded before: a module that came later would keep the number."""
    for kind in ("gzip.indexed", "xz.opening", "zstd.opening"):
        importlib.import_module(f"tap_zraw.{kind}")
    for name in ("forward", "gzip.points", "gzip.indexed", "gzip.opening"):
        monkeypatch.setattr(f"tap_zraw.{name}.PART", 32 * KIB)


def made(path: Path, content: bytes = CONTENT, *, level: int = 6) -> Path:
    """An image in two members, and the index that was asked for."""
    half = len(content) // 3
    path.write_bytes(gzip.compress(content[:half], level) + gzip.compress(content[half:], level))
    index = path.with_name(path.name + ".zindex")
    index.touch()
    assert content_of(path) == content
    assert index.stat().st_size > 1000
    return index


@pytest.mark.parametrize("level", [1, 6, 9])
def test_reads_begin_at_points(
    level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In any order, and across the members."""
    path = tmp_path / "disk.img.gz"
    made(path, level=level)
    monkeypatch.setattr(forward.ForwardOnly, "measured", None)
    rng = random.Random(level)
    with tapcore.open(path, readonly=True) as disk:
        assert disk.size == len(CONTENT)
        for _ in range(40):
            at, length = rng.randrange(len(CONTENT)), rng.choice((1, 4096, 50_000))
            assert disk.pread(at, length=min(length, len(CONTENT) - at)) == CONTENT[at:][:length]
        states = disk.state.disks.private.layout._states
    assert len(states) > 5
    assert not caplog.records


def test_little_is_unpacked_for_a_read_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img.gz"
    made(path)
    unpacked = []
    read = members.MembersForward.read

    def counting(self: members.MembersForward, most: int) -> bytes:
        content = read(self, most)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(members.MembersForward, "read", counting)
    with tapcore.open(path, readonly=True) as disk:
        assert disk.pread(len(CONTENT) - 512, length=512) == CONTENT[-512:]
    assert sum(unpacked) < len(CONTENT) // 3  # the head, and what lies behind the last point


def test_frames_are_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.img.zst"
    path.write_bytes(KINDS["skipped.img.zst"](CONTENT))
    path.with_name("disk.img.zst.zindex").touch()
    assert content_of(path) == CONTENT
    monkeypatch.setattr(frames, "_blocks", None)
    assert content_of(path) == CONTENT
    assert not caplog.records


@pytest.mark.parametrize("change", ["content", "time", "length", "other"])
def test_an_image_that_has_changed_gets_another_one(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.img.gz"
    index = made(path)
    before, status = index.read_bytes(), path.stat()
    packed, want = path.read_bytes(), CONTENT
    if change == "content":  # of the same length, and at the same time
        want = bytes((CONTENT[0] ^ 1, *CONTENT[1:]))
        stored = bytearray(gzip.compress(want, 0))
        path.write_bytes(stored.ljust(status.st_size, b"\0")[: max(status.st_size, len(stored))])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "length":
        path.write_bytes(packed + gzip.compress(b"more" * 128))
        want += b"more" * 128
    else:
        want = CONTENT[::-1][: 512 * 600]
        path.write_bytes(gzip.compress(want))
    assert content_of(path) == want
    assert [each.message.partition(": is made anew")[0] for each in caplog.records] == [str(index)]
    assert index.read_bytes() != before
    caplog.clear()
    assert content_of(path) == want
    assert not caplog.records


def test_bytes_that_nobody_looked_at_are_no_wrong_content(tmp_path: Path) -> None:
    """Same size, same time, and a change where no sample lies: a checksum of each part tells."""
    path = tmp_path / "disk.img.gz"
    content = random.Random(8).randbytes(1400 * KIB)
    path.write_bytes(gzip.compress(content, 0))
    path.with_name("disk.img.gz.zindex").touch()
    assert content_of(path) == content
    status, packed = path.stat(), bytearray(path.read_bytes())
    at = 1000 * KIB + 16 * KIB + 77
    packed[at] ^= 1
    path.write_bytes(packed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with tapcore.open(path, readonly=True) as disk:
        assert disk.pread(0, length=512 * KIB) == content[: 512 * KIB]
        with pytest.raises(TapError, match="not what the index beside it was made for"):
            disk.pread(960 * KIB, length=128 * KIB)
        assert disk.pread(1200 * KIB, length=100 * KIB) == content[1200 * KIB :][: 100 * KIB]


def test_damage_of_the_index_costs_nothing_but_time(tmp_path: Path, rng: random.Random) -> None:
    """Any byte of it: its tables are made anew, and what follows them is an error at worst."""
    path = tmp_path / "disk.img.gz"
    good = made(path).read_bytes()
    index = tmp_path / "disk.img.gz.zindex"
    for turn in range(40):
        bad = bytearray(good)
        if turn % 4:
            bad[rng.randrange(300 if turn % 2 else len(bad))] ^= 1 << rng.randrange(8)
        else:
            del bad[rng.randrange(len(bad)) :]
        index.write_bytes(bad)
        with tapcore.open(path, readonly=True) as disk:
            assert disk.size == len(CONTENT)
            for at in (len(CONTENT) - 512, 200 * KIB):
                try:
                    assert disk.pread(at, length=512) == CONTENT[at : at + 512]
                except TapError as exc:
                    assert "index" in str(exc)  # noqa: PT017 -- or it is right


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("xz.img.xz", "xz has one of its own"),
        ("bgzip.img.gz", "bgzip's members are found without one"),
        ("seekable.img.zst", "the image has a seek table"),
    ],
)
def test_what_needs_none_gets_none(
    kind: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / kind
    path.write_bytes(KINDS[kind](CONTENT))
    index = tmp_path / f"{kind}.zindex"
    index.touch()
    assert content_of(path) == CONTENT
    assert [each.message for each in caplog.records] == [f"{index}: is not written: {why}"]
    assert not index.stat().st_size


def test_a_file_of_everybody_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.img.gz"
    index = made(path)
    index.chmod(0o666)
    assert content_of(path) == CONTENT
    assert [each.message for each in caplog.records] == [
        f"{index}: is not used: everybody can write it"
    ]
    index.unlink()
    index.symlink_to(path)
    assert content_of(path) == CONTENT
    assert "it is no regular file" in caplog.records[-1].message


def test_where_it_cannot_be_written_the_image_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.img.gz"
    path.write_bytes(gzip.compress(CONTENT))
    index = tmp_path / "disk.img.gz.zindex"
    index.touch()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tap_zraw.beside.os.replace", full)
    assert content_of(path) == CONTENT
    assert [each.message for each in caplog.records] == [
        f"{index}: cannot be written: No space left on device"
    ]
    assert sorted(os.listdir(tmp_path)) == ["disk.img.gz", "disk.img.gz.zindex"]
    assert not index.stat().st_size

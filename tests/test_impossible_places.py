"""A damaged table may name any place of 64 bits: the host file's layer answers with an errno."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tapcore import OpenOptions
from tapcore.files import ImageFile, open_image_file

PLACES = ((1 << 63) - 512, 1 << 63, (1 << 64) - 4096)


@pytest.fixture(params=["writeback", "none"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ImageFile]:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    found = open_image_file(str(path), 0, OpenOptions(cache=request.param))
    yield found
    found.close()


@pytest.mark.parametrize("place", PLACES)
def test_content_there_is_an_error(file: ImageFile, place: int) -> None:
    buf = memoryview(bytearray(4096))
    assert (file.read_now(place, buf) or 0) <= 0
    assert (file.write_now(place, buf) or 0) <= 0
    assert file.read_blocking(place, buf) < 0
    assert file.write_blocking(place, buf) < 0
    assert file.size == 8192


@pytest.mark.parametrize("place", PLACES)
def test_what_is_queued_there_is_answered(file: ImageFile, place: int) -> None:
    buf, answers = memoryview(bytearray(4096)), list[int]()

    def then(res: int) -> int:
        answers.append(res)
        return 0

    assert file.queue_read(place, buf, then) == 0
    assert file.queue_write(place, buf, then) == 0
    file.submit()
    file.drain()
    assert len(answers) == 2
    assert all(res < 0 for res in answers)
    assert file.size == 8192


@pytest.mark.parametrize("place", PLACES)
def test_metadata_there_is_an_error(file: ImageFile, place: int) -> None:
    assert file.metadata_now(place, 4096) is None
    with pytest.raises(OSError, match=r"no file has|Invalid argument"):
        file.read_metadata(place, 4096)
    with pytest.raises(OSError, match=r"too large|Invalid argument"):
        file.write_metadata(place, b"x")


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_allocated_there(file: ImageFile, place: int) -> None:
    assert file.holes.run(place, place + 4096) == (place + 4096, False)
    assert file.discard_blocking(place, 4096) == 0

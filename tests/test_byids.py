"""Parents that are known by an id alone, for drivers of any format."""

import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tapcore import ImageFormatError, ImageIds, check_ids, find_by_ids, look_at_file

ID, CHANGE = uuid4(), uuid4()


def ids_in(fd: int) -> ImageIds | None:
    """A file of the letter "i" and two ids is an image."""
    content = os.pread(fd, 33, 0)
    if content[:1] != b"i":
        raise ImageFormatError("is no image")
    return ImageIds(UUID(bytes=content[1:17]), UUID(bytes=content[17:]))


def make(path: Path, image: UUID, modified: UUID = CHANGE) -> None:
    path.write_bytes(b"i" + image.bytes + modified.bytes)


def test_the_folder_goes_before_the_one_above(tmp_path: Path) -> None:
    child = tmp_path / "Snapshots"
    child.mkdir()
    make(tmp_path / "base", ID)
    (child / "text").write_text("no image")
    assert find_by_ids(str(child), ImageIds(ID), ids_in) == "../base"
    make(child / "near", ID)
    assert find_by_ids(str(child), ImageIds(ID), ids_in) == "near"
    assert find_by_ids(str(child), ImageIds(uuid4()), ids_in) is None


def test_of_two_the_last_change_decides_and_nothing_is_guessed(tmp_path: Path) -> None:
    make(tmp_path / "a", ID, uuid4())
    make(tmp_path / "b", ID)
    make(tmp_path / "c", ID, UUID(int=0))
    assert find_by_ids(str(tmp_path), ImageIds(ID, CHANGE), ids_in) == "b"
    for unknown in (None, UUID(int=0), uuid4()):
        with pytest.raises(ImageFormatError, match="which of a and b its parent is"):
            find_by_ids(str(tmp_path), ImageIds(ID, unknown), ids_in)


def test_an_id_of_zeroes_names_nobody(tmp_path: Path) -> None:
    make(tmp_path / "a", UUID(int=0))
    assert find_by_ids(str(tmp_path), ImageIds(UUID(int=0)), ids_in) is None


def test_only_regular_files_are_looked_at(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder", "nothing"):
        assert look_at_file(str(tmp_path / name), lambda fd: True) is None


def test_what_was_recorded_is_compared() -> None:
    check_ids(ImageIds(ID, CHANGE), ImageIds(ID, CHANGE))
    check_ids(ImageIds(ID), ImageIds(ID, CHANGE))
    check_ids(ImageIds(None, CHANGE), ImageIds(uuid4(), uuid4()))
    with pytest.raises(ImageFormatError, match="is another image"):
        check_ids(ImageIds(ID), ImageIds(uuid4()))
    for found in (None, uuid4()):
        with pytest.raises(ImageFormatError, match="was changed after it was made"):
            check_ids(ImageIds(ID, CHANGE), ImageIds(ID, found))

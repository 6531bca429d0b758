"""Files that an image names besides its parent: opened in one place, under the disk's policy."""

import os
from pathlib import Path

import pytest
from drivers.toy import change_head

import tapcore
from tapcore import ImageFile, create_image, open_named_file

MIB = 1 << 20


def opened_by(image: str, named: str, **options: object) -> ImageFile:
    with tapcore.open(image, **{"readonly": False, **options}) as disk:  # type: ignore[arg-type]
        return open_named_file(disk.state.disks, named, role="data file", flags=0)


def test_relative_to_the_image_and_locked(toys: Path) -> None:
    (toys / "sub").mkdir()
    (toys / "sub/data").write_bytes(b"x" * 512)
    create_image("sub/a.toy", MIB)
    file = opened_by("toy:sub/a.toy", "data")
    try:
        assert file.path == str(toys / "sub/data")
        assert not file.read_only
        with pytest.raises(tapcore.ImageLockedError):
            tapcore.open("aio:sub/data", readonly=False)
    finally:
        file.close()


def test_of_an_image_that_is_only_read_it_is_only_read(toys: Path) -> None:
    (toys / "data").write_bytes(b"x" * 512)
    create_image("a.toy", MIB)
    file = opened_by("toy:a.toy", "data", readonly=True)
    assert file.read_only
    file.close()


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("nothing", tapcore.ImageOpenError, "its data file 'nothing' does not exist"),
        ("folder", tapcore.ImageOpenError, "its data file {here}/folder: is a directory"),
        ("a.toy", tapcore.ImageOpenError, "names itself as its data file"),
        ("/etc/passwd", tapcore.ReferencePolicyError, "--parents /etc would allow it"),
        ("link", tapcore.ReferencePolicyError, "--parents /etc would allow it"),
        ("nbd://host/x", tapcore.ReferencePolicyError, "which is not a plain file name"),
        ("", tapcore.ReferencePolicyError, "names a file with an impossible name"),
    ],
)
def test_a_refusal_names_the_image_and_the_file(
    toys: Path, named: str, error: type[tapcore.TapError], message: str
) -> None:
    (toys / "folder").mkdir()
    (toys / "link").symlink_to("/etc/passwd")
    create_image("a.toy", MIB)
    with pytest.raises(error) as caught:
        opened_by("toy:a.toy", named)
    assert caught.value.image == "a.toy"
    assert message.format(here=toys) in caught.value.message


def test_the_policy_of_the_disk_reaches_it(
    toys: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "data").write_bytes(b"x" * 512)
    create_image("a.toy", MIB)
    change_head("a.toy", data_file=f"{elsewhere}/data")
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.open("toy:a.toy", readonly=False)
    tapcore.open("toy:a.toy", parents=os.fspath(elsewhere), readonly=False).close()
    with pytest.raises(tapcore.ReferencePolicyError, match="--parents none forbids all"):
        tapcore.open("toy:a.toy", parents="none", readonly=False)

"""What people type: sizes, and `[HANDLE:]PATH`."""

from pathlib import Path

import pytest
from drivers.broken import OldApi, Tiny
from hypothesis import given
from hypothesis import strategies as st

from tapcore import DiskId, Registry, TapError, UnknownHandleError, UsageError
from tapcore.constants import MAX_DISK_SECTORS
from tapcore.opening.names import handle_for_new, raw_handle, split_name
from tapcore.sizes import changed_size, disk_size, format_size, parse_size, round_up_to_sector

LARGEST = MAX_DISK_SECTORS * 512


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("10G", 10 << 30),
        ("1.5T", 3 << 39),
        ("0.5K", 512),
        (" 1M ", 1 << 20),
        ("1 G", 1 << 30),
        ("20GiB", 20 << 30),
        ("1.5 GiB", 3 << 29),  # as it is printed
        ("512 B", 512),
        ("20GB", 20_000_000_000),  # as GNU's programs have it
        ("4kB", 4000),
        ("2P", 2 << 50),
        ("007", 7),
        (str(LARGEST), LARGEST),
    ],
)
def test_sizes_with_and_without_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "G",
        "-1",
        "+1",
        "1.5",
        "1.5B",
        "1.",
        ".5G",
        "1  G",
        "1iB",
        "1GBi",
        "0x10",
        "1e3",
        "1_000",
        "\u0661",
        "1\n2",
        "nan",
        "9" * 40,
    ],
)
def test_what_is_not_a_size_is_refused_with_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["8192P", "9223372036854775808", "9223372036854775807", "9000P"])
def test_no_disk_is_larger_than_a_host_file_can_be(text: str) -> None:
    with pytest.raises(UsageError, match="larger than a disk can be"):
        disk_size(text)


def test_the_largest_disk_ends_where_offsets_end() -> None:
    assert LARGEST <= (1 << 63) - 1 < LARGEST + 512


@given(st.integers(0, LARGEST))
def test_a_disks_size_is_the_next_whole_sector(size: int) -> None:
    assert disk_size(str(size)) == round_up_to_sector(size)
    assert 0 <= round_up_to_sector(size) - size < 512
    assert round_up_to_sector(size) % 512 == 0


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 40))
def test_a_size_may_be_said_as_a_change(current: int, by: int) -> None:
    assert changed_size(f"+{by}", current) == round_up_to_sector(current + by)
    if by <= current:
        assert changed_size(f"-{by}", current) == round_up_to_sector(current - by)
    assert changed_size(str(by), current) == round_up_to_sector(by)


@pytest.mark.parametrize(
    ("text", "current"),
    [("+-5", 4096), ("--5", 4096), ("+", 4096), ("-", 4096), ("++5", 0), (f"+{LARGEST}", 512)],
)
def test_a_change_that_makes_no_size_is_refused(text: str, current: int) -> None:
    with pytest.raises(UsageError):
        changed_size(text, current)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 << 10, "64 KiB"),
        (1000 << 20, "1000 MiB"),
        (1023 << 30, "1023 GiB"),
        (3 << 39, "1.5 TiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.fixture
def registry() -> Registry:
    made = Registry(discover=False)
    made.register(Tiny("aio"))
    made.register(Tiny("qcow2"))
    made.register(OldApi())
    return made


@pytest.mark.parametrize(
    ("text", "name", "handle"),
    [
        ("disk.img", "disk.img", ""),
        ("aio:disk.img", "disk.img", "aio"),
        ("qcow2:/a/b:c", "/a/b:c", "qcow2"),
        ("aio:qcow2:x", "qcow2:x", "aio"),
        ("aio::x", ":x", "aio"),
        ("./aio:x", "./aio:x", ""),
        ("/a/b:c", "/a/b:c", ""),
        ("a-b:c", "a-b:c", ""),
        (":x", ":x", ""),
        ("9p:x", "9p:x", ""),
        ("bücher:x", "bücher:x", ""),
        ("aio:with space", "with space", "aio"),
    ],
)
def test_a_name_is_a_handle_and_a_path(
    text: str, name: str, handle: str, registry: Registry
) -> None:
    assert split_name(text, registry) == DiskId(name, handle)


def test_a_mistyped_handle_is_no_files_name_unless_there_is_such_a_file(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownHandleError, match=r"qcwo2.*installed: aio, qcow2") as caught:
        split_name("qcwo2:disk", registry)
    assert caught.value.image == "qcwo2:disk"
    (tmp_path / "qcwo2:disk").touch()
    assert split_name("qcwo2:disk", registry) == DiskId("qcwo2:disk")
    (tmp_path / "dangling:x").symlink_to("nowhere")
    assert split_name("dangling:x", registry) == DiskId("dangling:x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("aio:", "names no image"),
        ("old:disk", "cannot be used: was written for"),
    ],
)
def test_names_that_mean_nothing_are_refused(text: str, said: str, registry: Registry) -> None:
    with pytest.raises(TapError, match=said):
        split_name(text, registry)


def test_a_new_images_format_comes_from_its_handle_or_its_suffix(registry: Registry) -> None:
    assert handle_for_new(DiskId("x", "qcow2"), registry).handle == "qcow2"
    assert handle_for_new(DiskId("x.IMG"), registry).handle == "aio"
    with pytest.raises(UsageError, match=r"write HANDLE:PATH \(handles: no driver"):
        handle_for_new(DiskId("x"), registry)
    with pytest.raises(UsageError, match="no driver that can create images is installed"):
        handle_for_new(DiskId("x"), Registry(discover=False))


def test_the_handles_named_for_a_new_image_are_those_that_can_make_one() -> None:
    registry = Registry()
    makers = [info.handle for info in registry.drivers() if "create" in info.capabilities]
    assert {"aio", "sync"} <= set(makers)
    assert "ram" not in makers
    with pytest.raises(UsageError, match=rf"handles: {', '.join(makers)}\)"):
        handle_for_new(DiskId("x"), registry)


def test_raw_files_have_a_driver_or_a_hint(registry: Registry) -> None:
    assert raw_handle(registry) == "aio"
    with pytest.raises(UnknownHandleError, match="pip install tap-aio"):
        raw_handle(Registry(discover=False))

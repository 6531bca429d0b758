"""From Python a name may be a path (`os.PathLike`) everywhere, and a length has to be named."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore.tools.amend import amend_image
from tapcore.tools.check import check_image
from tapcore.tools.commit import commit_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image
from tapcore.tools.measure import measure_image
from tapcore.tools.openimage import open_chain, open_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image
from tapcore.tools.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    base, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    tapcore.create_image(base, SIZE)
    tapcore.create_image(path, None, parent=base)
    return path


def test_disks_are_opened_by_paths(image: Path) -> None:
    with tapcore.open(image, readonly=True, parents=(image.parent,)) as disk:
        assert disk.name == f"qcow2:{image}"
    with open_image(image, writing=True) as disk:
        disk.pwrite(0, b"x")
    keys: dict[os.PathLike[str], bytes] = {image: b"a passphrase"}
    tapcore.open(image, readonly=True, keys=keys).close()
    state = open_chain(image)
    assert state.image.name == str(image)
    tapcore.Disk(state).close()


def test_a_path_means_what_its_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tapcore.create_image(Path("qcow2:disk"), SIZE)
    with tapcore.open(Path("qcow2:disk"), readonly=False) as disk:
        assert (disk.handle, os.listdir()) == ("qcow2", ["disk"])


def test_every_tool_takes_paths(image: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "other.qcow2", tmp_path / "target.qcow2"
    [info] = image_info(image)
    assert (info.image, info.parent) == (str(image), str(tmp_path / "base.qcow2"))
    assert inspect_image(image).image == str(image)
    assert check_image(image).corruptions == 0
    assert resize_image(image, "2M") == (SIZE, 2 * SIZE)
    amend_image(image, {"lazy_refcounts": "on"})
    assert measure_image(image, "qcow2", options={"cluster_size": "64K"}).required
    assert create_snapshot(image, "one").name == "one"
    assert apply_snapshot(image, "one").name == "one"
    assert [found.name for found in list_snapshots(image)] == ["one"]
    assert delete_snapshot(image, "one").name == "one"
    tapcore.convert_image(image, other)
    tapcore.convert_image(other, target, parent=image, options={"data_file": tmp_path / "data"})
    assert (tmp_path / "data").exists()
    rebase = rebase_image(image, other)
    assert rebase.parent == tapcore.DiskId(str(other), "qcow2")
    assert commit_image(image).parent.name == str(other)


def test_a_server_takes_paths(image: Path, tmp_path: Path) -> None:
    address = tapcore.UnixAddress(tmp_path / "socket")
    server = tapcore.nbd_server([image], address)
    server.stop()
    server.run()
    assert address.uri("").endswith(f"socket={tmp_path}/socket")


def test_drivers_calls_take_paths(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tapcore.create_host_file(path, 4096)
    tapcore.open_image_file(path, tapcore.TD_RDONLY, tapcore.OpenOptions()).close()
    tapcore.remove_host_file(path)
    assert not path.exists()
    assert tapcore.ReferencePolicy(directories=(tmp_path,)).directories == (str(tmp_path),)


@pytest.mark.parametrize(
    "call",
    [
        lambda path: tapcore.open(path, readonly=True),
        lambda path: image_info(path),
        lambda path: check_image(path),
        lambda path: inspect_image(path),
        lambda path: resize_image(path, "1M"),
        lambda path: tapcore.convert_image(path, path.with_name("new.img")),
    ],
)
def test_the_error_names_it_as_text(call: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "missing.qcow2"
    with pytest.raises(FileNotFoundError) as caught:
        call(path)
    assert str(caught.value) == f"{path}: No such file or directory"
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(
    "call",
    [
        lambda disk: disk.pread(0, 512),
        lambda disk: disk.zero(0, 512),
        lambda disk: disk.discard(0, 512),
        lambda disk: disk.extents(0, 512),
        lambda disk: disk.pwrite(b"data", 0),
        lambda disk: disk.pread_into(bytearray(512), 0),
        lambda disk: disk.write_compressed(b"data", 0),
    ],
)
def test_arguments_in_the_wrong_order_are_an_error(call: Callable[[Any], object]) -> None:
    with tapcore.open("ram:1M", readonly=False) as disk, pytest.raises(TypeError):
        call(disk)


def test_no_call_of_a_disk_takes_two_numbers_by_place() -> None:
    for name, method in inspect.getmembers(tapcore.Disk, inspect.isfunction):
        if name.startswith("_") or "tapcore" not in method.__module__:
            continue
        by_place = [
            p.annotation
            for p in inspect.signature(method).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
        ]
        assert name == "seek" or by_place.count("int") < 2, name


def test_the_bytes_of_a_name_are_a_name(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9\xff"
    tapcore.create_image(b"qcow2:" + raw, 1 << 20)
    tapcore.create_image(b"qcow2:" + raw + b"2", None, parent=b"qcow2:" + raw)
    with tapcore.open(raw, readonly=True) as disk:
        assert os.fsencode(disk.name) == b"qcow2:" + raw
    assert image_info(raw + b"2", chain=True)[1].image == os.fsdecode(raw)
    check_image(raw)
    inspect_image(raw)
    resize_image(b"qcow2:" + raw + b"2", "2M")
    rebase_image(b"qcow2:" + raw + b"2", b"")
    tapcore.convert_image(raw, raw + b".img")
    assert os.path.getsize(raw + b".img") == 1 << 20
    with pytest.raises(FileNotFoundError) as caught:
        tapcore.open(b"aio:/no/such/caf\xff", readonly=False)
    assert str(caught.value) == "/no/such/caf\\xff: No such file or directory"


@pytest.mark.parametrize("name", ["a\0b", "\ud800", ""])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(tapcore.UsageError) as caught:
        tapcore.open(name, readonly=True)
    assert caught.value.filename == (name or None)


@pytest.mark.parametrize("name", [None, 3, 1.5, ["a"]])
def test_what_is_no_name_is_a_type_error(name: Any) -> None:
    for call in (tapcore.open, image_info, lambda name: tapcore.create_image(name, 512)):
        with pytest.raises(TypeError):
            call(name)


def test_other_arguments_are_not_taken_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"cache": "None"}, tapcore.UsageError),
        ({"cache": None}, tapcore.UsageError),
        ({"cache": "writethrough"}, tapcore.UsageError),
        ({"filters": "error"}, TypeError),
        ({"keys": "secret"}, TypeError),
        ({"keys": {str(path): "secret"}}, TypeError),
        ({"metadata_cache": -1}, tapcore.UsageError),
        ({"metadata_cache": "1M"}, TypeError),
        ({"parents": 5}, TypeError),
    ]
    for arguments, kind in wrong:
        with pytest.raises(kind):
            tapcore.open(path, readonly=True, **arguments)
    tapcore.open(path, readonly=True, parents=[tmp_path, "any"]).close()


# ---- one word for each thing ---------------------------------------------------------------------


@pytest.fixture
def child(tmp_path: Path) -> Path:
    """A child whose parent lies in another directory than its own."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "vm").mkdir()
    tapcore.create_image(tmp_path / "pool" / "base.qcow2", SIZE)
    path = tmp_path / "vm" / "child.qcow2"
    tapcore.create_image(path, parent=tmp_path / "pool" / "base.qcow2")
    return path


@pytest.mark.parametrize("kind", ["text", "path", "several", "any", "policy"])
def test_parents_are_said_in_one_way(kind: str, child: Path) -> None:
    pool = child.parent.parent / "pool"
    parents: dict[str, Any] = {
        "text": str(pool),
        "path": pool,
        "several": ["/nowhere", pool],
        "any": "any",
        "policy": tapcore.ReferencePolicy(directories=(pool,)),
    }
    given = parents[kind]
    with tapcore.open(child, parents=given) as disk:
        assert disk.size == SIZE
    tapcore.convert_image(child, child.parent / "copy.img", parents=given)
    assert inspect_image(child, parents=given).verdict == "harmless"
    tapcore.create_image(child.parent / "second.qcow2", parent=child, parents=given)
    server = tapcore.nbd_server(
        [child], tapcore.UnixAddress(child.parent / "socket"), parents=given, readonly=True
    )
    server.stop()
    server.run()
    tapcore.Template(child, parents=given).close()


def test_nothing_said_of_parents_allows_none_outside(child: Path) -> None:
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.open(child)
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.convert_image(child, child.parent / "copy.img", parents=())
    assert inspect_image(child).verdict == "danger"


def test_the_words_of_earlier_releases_work_with_a_warning(child: Path) -> None:
    policy, before = tapcore.ReferencePolicy(any=True), dict[str, Any]
    with pytest.warns(DeprecationWarning, match="'references' is called 'parents' now") as seen:
        tapcore.convert_image(child, child.parent / "copy.img", **before(references=policy))
    assert [warning.filename for warning in seen] == [__file__]
    with pytest.warns(DeprecationWarning, match="parents"):
        assert inspect_image(child, **before(references=policy)).verdict == "harmless"
    with pytest.warns(DeprecationWarning, match="parents"):
        tapcore.create_image(
            child.parent / "second.qcow2", parent=child, **before(references=policy)
        )
    with pytest.warns(DeprecationWarning, match="'read_only' is called 'readonly' now"):
        server = tapcore.nbd_server(
            [child],
            tapcore.UnixAddress(child.parent / "socket"),
            parents="any",
            **before(read_only=True),
        )
    server.stop()
    server.run()
    with pytest.raises(TypeError, match="both 'parents' and 'references'"):
        tapcore.convert_image(child, "x.img", parents="any", **before(references=policy))

"""Manifests: a driver's facts as data, so that no driver is imported to be listed or asked."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore import DiskInfo, FormatOption, ImageFormatError, Magic, UnknownHandleError
from tapcore.formats.foreign import Sample
from tapcore.interface.manifest import (
    MANIFEST,
    Manifest,
    differences,
    package_file,
    parse_manifest,
    render_manifest,
)
from tapcore.interface.registry import Registry
from tapcore.opening.guard import ContentGuard
from tapcore.opening.probe import judge, recognise
from tapcore.tools.plugins import manifest_of

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
HANDLES = [ep.name for ep in tapcore.interface.installed.entry_points("tapcore.drivers")]

WHOLE = DiskInfo(
    handle="whole",
    name="all that can be said",
    api=1,
    single_handler=True,
    suffixes=(".one", ".two"),
    file_backed=False,
    makes_unnamed=True,
    create_options=(FormatOption("a", "help", ("x", "y"), "x"), FormatOption("b", "more")),
    amend_options=(FormatOption("b", "more"),),
    magic=(Magic(b"\0\xff\n"), Magic(b"a.b", -512, named=True, pattern=True, sure=False)),
)


def test_what_is_written_is_read_again() -> None:
    manifest = Manifest(WHOLE, frozenset({"td_open", "td_queue_read"}))
    again = parse_manifest(render_manifest([manifest]).encode(), "whole")
    assert again == manifest
    assert differences(manifest, WHOLE, manifest.hooks) == []


def test_what_differs_is_named() -> None:
    manifest = Manifest(WHOLE, frozenset({"td_open"}))
    other = DiskInfo(handle="whole", name="other", api=1, single_handler=True)
    assert differences(manifest, WHOLE, frozenset()) == ["hooks"]
    assert {"name", "magic", "create_options"} <= {*differences(manifest, other, manifest.hooks)}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '"x"', '{"version": 1}', '{"version": 1, "drivers": {"x": {}}}', "\xff"),
        *('{"version": 1, "drivers": {"x": {"suffixes": 3}}}', '{"version": 1, "drivers": 7}'),
    ],
)
def test_what_is_no_manifest_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_manifest(text.encode("latin-1"), "x")


def test_a_manifest_of_another_version_or_driver_is_none() -> None:
    assert parse_manifest(b'{"version": 2, "anything": 1}', "x") is None
    assert parse_manifest(b'{"version": 1, "drivers": {}}', "x") is None


# ---- those of this repository ------------------------------------------------------------------


@pytest.mark.parametrize("handle", HANDLES)
def test_the_manifest_of_a_driver_is_what_it_does(handle: str) -> None:
    registry = Registry()
    (row,) = [row for row in registry.rows() if row.info.handle == handle]
    assert row.entry_point is not None
    content = package_file(row.entry_point.value, MANIFEST)
    again = f"run: tapdisk plugins manifest {handle} > .../{MANIFEST}"
    assert content is not None, again
    assert content.decode() == manifest_of(handle, registry), again


def run(code: str, *arguments: str) -> list[str]:
    """What a program prints, and behind it the modules of drivers that it has imported."""
    script = f"import sys\n{code}\nprint(*sorted(m for m in sys.modules if m.startswith('tap_')))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


COMMAND = "from tapcore.cli.main import main\nassert main(sys.argv[1:]) in (0, 1)"


def test_listing_and_completing_import_no_driver(tmp_path: Path) -> None:
    for words in (["formats"], ["formats", "--json"], ["plugins", "list"]):
        assert run(COMMAND, *words)[-1] == "", words
    complete = (
        "from tapcore.cli.candidates import format_option_items, handle_items\n"
        "for items in (handle_items('qcow'), format_option_items('new.qcow2', 'cl')):\n"
        "    print(*(item.value for item in items))"
    )
    assert run(complete) == ["qcow qcow2", "cluster_size=", ""]


@pytest.mark.parametrize(
    "content", [b"PK\3\4" + bytes(5000), b"<VDI damaged", b"Obj\1" + bytes(600)]
)
def test_a_refusal_imports_no_driver(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    probing = (
        "from tapcore.opening.probe import probe\n"
        "from tapcore.interface.registry import Registry\n"
        "try:\n    print(probe(sys.argv[1], Registry()))\nexcept OSError as exc:\n    print(exc)"
    )
    assert run(probing, str(tmp_path / "file.zip"))[-1] == ""


def test_probing_imports_no_driver_and_opening_only_its_own(tmp_path: Path) -> None:
    tapcore.create_image(tmp_path / "disk.qcow2", 1 << 20)
    probing = (
        "from tapcore.opening.probe import probe\n"
        "from tapcore.interface.registry import Registry\n"
        "print(probe(sys.argv[1], Registry()))"
    )
    assert run(probing, str(tmp_path / "disk.qcow2")) == ["qcow2", ""]
    modules = run(COMMAND, "info", str(tmp_path / "disk.qcow2"))[-1].split()
    assert {name.partition(".")[0] for name in modules} == {"tap_qcow2"}


# ---- how the registry takes them ---------------------------------------------------------------


DRIVER = """
import tapcore
disk_info = tapcore.DiskInfo(handle="late", name="late", api=1, magic=(tapcore.Magic(b"LATE"),))
@tapcore.hookimpl
def td_open(dd): dd.size = 1
@tapcore.hookimpl
def td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv):
    return cb(dd, 0, sector, nb_sectors, id, prv)
"""
LATE = Manifest(
    DiskInfo(handle="late", name="late", api=1, magic=(Magic(b"LATE"),)),
    frozenset({"td_open", "td_queue_read"}),
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed driver `late` with a manifest."""
    records = tmp_path / "tap_late-1.2.dist-info"
    records.mkdir()
    (records / "METADATA").write_text("Name: tap-late\nVersion: 1.2\n\nVersion: none\n")
    (records / "entry_points.txt").write_text("[tapcore.drivers]\nlate = tap_late.driver\n")
    folder = tmp_path / "tap_late"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "driver.py").write_text(DRIVER)
    (folder / MANIFEST).write_text(render_manifest([LATE]))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tap_late", "tap_late.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_a_driver_is_imported_when_it_is_used(package: Path) -> None:
    registry = Registry()
    info = registry.get("late")
    assert (info.capabilities, info.error) == (("read",), "")
    (row,) = [row for row in registry.table() if row.handle == "late"]
    assert (row.distribution, row.version) == ("tap-late", "1.2")
    assert info.drv is not None
    assert info.drv.implemented == LATE.hooks
    assert "tap_late" not in sys.modules
    nobody: Any = None
    assert info.drv.td_info(nobody) == {}
    assert "tap_late.driver" in sys.modules
    assert registry.get("late").drv is registry.operations("late")
    assert registry.get("late").idnum == info.idnum


def test_a_driver_that_does_not_load_after_all(package: Path) -> None:
    (package / "driver.py").write_text("import nowhere.to.be.found\n")
    registry = Registry()
    assert recognise("x", Sample(8, b"LATE....", b"LATE...."), registry) == "late"
    with pytest.raises(
        UnknownHandleError, match=r"'late' cannot be used: .*No module named 'nowh"
    ) as it:
        registry.operations("late")
    assert isinstance(it.value.__cause__, ModuleNotFoundError)
    assert registry.get("aio").drv is not None
    assert "late" not in registry
    assert [row.handle for row in registry.broken()] == ["late"]


def test_an_untrue_manifest_is_said_and_the_driver_counts(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    untrue = Manifest(LATE.info, LATE.hooks | {"td_resize"})
    (package / MANIFEST).write_text(render_manifest([untrue]))
    registry = Registry()
    assert "resize" in registry.get("late").capabilities
    assert registry.operations("late").implemented == LATE.hooks
    assert "resize" not in registry.get("late").capabilities
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "its manifest is not true of it (hooks)" in text]


def test_a_manifest_that_cannot_be_read_costs_only_time(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (package / MANIFEST).write_text("{}")
    assert Registry().get("late").capabilities == ("read",)
    assert "its manifest cannot be read" in caplog.text
    assert "tap_late.driver" in sys.modules


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"api": 7}, "was written for version 7 of the hooks"),
        ({"hooks": ["td_opne"]}, "td_opne (did you mean td_open?)"),
    ],
)
def test_what_a_manifest_says_may_be_reason_enough(
    package: Path, change: dict[str, object], said: str
) -> None:
    manifest = json.loads(render_manifest([LATE]))
    manifest["drivers"]["late"].update(change)
    (package / MANIFEST).write_text(json.dumps(manifest))
    (row,) = [row for row in Registry().table() if row.handle == "late"]
    assert said in row.error
    assert "tap_late" not in sys.modules


# ---- magic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("magic", "head", "tail", "shown"),
    [
        (Magic(b"ab"), b"abc", b"", True),
        (Magic(b"ab"), b"a", b"", False),
        (Magic(b"b", 1), b"abc", b"", True),
        (Magic(b"b", 9), b"abc", b"b", False),
        (Magic(b"bc", -2), b"", b"abc", True),
        (Magic(b"ab", -4), b"ab", b"abc", False),
        (Magic(b"a+b", pattern=True), b"aab", b"", True),
        (Magic(b"a+b", 1, pattern=True), b"xaab", b"", True),
        (Magic(b"a+b", pattern=True), b"xaab", b"", False),
    ],
)
def test_where_magic_is_looked_for(magic: Magic, head: bytes, tail: bytes, shown: bool) -> None:
    assert magic.shown_by(head, tail) == shown


def test_drivers_are_shown_the_tail_of_a_file() -> None:
    class Footers:
        disk_info = DiskInfo(handle="foot", name="footers", api=1)

        @tapcore.hookimpl
        def td_open(self) -> None: ...

        @tapcore.hookimpl
        def td_queue_read(self) -> None: ...

        @tapcore.hookimpl
        def td_probe(self, tail: bytes) -> bool:
            return tail[-512:].startswith(b"koly")

    registry = Registry(discover=False)
    assert registry.register(Footers()).error == ""
    tail = b"koly".ljust(512, b"\0")
    assert recognise("x", Sample(9000, bytes(8000), bytes(500) + tail), registry) == "foot"
    assert recognise("x", Sample(9000, tail, b""), registry) == ""


def test_a_simple_driver_with_its_magic_at_the_end() -> None:
    class Footer(tapcore.SimpleDriver):
        handle, api, magic, magic_offset = "foot", 1, b"koly", -512

        def pread(self, offset: int, length: int) -> bytes:
            return bytes(length)

    registry = Registry(discover=False)
    assert registry.register(Footer).error == ""
    assert recognise("x", Sample(512, b"", b"koly".ljust(512)), registry) == "foot"


VHD = b"conectix".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("name", "head", "tail", "handle"),
    [
        ("a", b"QFI\xfb\0\0\0\1", b"", "qcow"),
        ("a", b"QFI\xfb\0\0\0\3", b"", "qcow2"),
        ("a", b"KDMV" + bytes(600), b"", "vmdk"),
        ("a", b"# Disk DescriptorFile\nversion=1\n", b"", "vmdk"),
        ("a", b"\xff\xfe" + "# Disk DescriptorFile\n".encode("utf-16-le"), b"", "vmdk"),
        ("a.img", b"some text about a disk descriptor", b"", "aio"),
        ("a", VHD, b"", "vhd"),
        ("a.vhd", bytes(512), VHD, "vhd"),
        ("a.VHD", bytes(512), VHD[:511], "vhd"),
        ("a", bytes(64) + b"\x7f\x10\xda\xbe", b"", "vdi"),
    ],
)
def test_what_is_recognised(name: str, head: bytes, tail: bytes, handle: str) -> None:
    if handle not in HANDLES:
        pytest.fail(f"tap-{handle} is not installed here")
    assert judge(name, Sample(1 << 20, head, tail), Registry()) == handle


def test_a_guest_that_writes_a_magic_lets_no_driver_be_imported(tmp_path: Path) -> None:
    code = (
        "from tapcore.opening.guard import guard_of\n"
        "from tapcore.interface.registry import Registry\n"
        "guard = guard_of(sys.argv[1], Registry())\n"
        "print(guard.looks_like(b'QFI\\xfb\\0\\0\\0\\3', b'', 512))"
    )
    assert run(code, str(tmp_path / "disk")) == ["qcow2", ""]
    assert ContentGuard("x", Registry()).looks_like(bytes(512), bytes(512), 512) == ""


def test_a_fixed_vhd_of_another_name_is_not_opened_as_a_raw_disk() -> None:
    with pytest.raises(ImageFormatError):
        judge("a.img", Sample(1 << 20, bytes(512), VHD), Registry())

"""`tapdisk plugins` and `tapdisk formats --long`: what an author and a user are told of drivers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tapcore
from tapcore.cli.main import main
from tapcore.interface import registry as registry_module
from tapcore.tools.formatdetails import CONFORMANCE, format_details

GOOD = """
import tapcore
disk_info = tapcore.DiskInfo(handle="mine", name="mine", api=1)
@tapcore.hookimpl
def td_open(dd): dd.size = 1
@tapcore.hookimpl
def td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv):
    return cb(dd, 0, sector, nb_sectors, id, prv)
"""
CARELESS = (
    GOOD.replace("api=1", "api=tapcore.HOOKS_VERSION")
    + """
def td_close(dd):
    pass
"""
)
RAISES = "def work():\n    raise RuntimeError('no such thing')\nwork()\n"
MISSPELT = GOOD + "@tapcore.hookimpl\ndef td_clsoe(dd): pass\n"

Install = Callable[[str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a driver `mine` with this source, without a manifest."""

    def put(source: str) -> Path:
        records = tmp_path / "site" / "tap_mine-1.2.dist-info"
        records.mkdir(parents=True)
        text = "Name: tap-mine\nVersion: 1.2\nLicense-Expression: MIT\n"
        (records / "METADATA").write_text(text)
        (records / "entry_points.txt").write_text("[tapcore.drivers]\nmine = tap_mine.driver\n")
        folder = tmp_path / "site" / "tap_mine"
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "driver.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / "site")
        return folder

    monkeypatch.setattr(registry_module, "_default", None)
    for name in ("tap_mine", "tap_mine.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return put


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["plugins", "doctor", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_what_is_installed_is_listed(capsys: pytest.CaptureFixture[str], install: Install) -> None:
    install(GOOD)
    assert main(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mine"] == {
        "kind": "driver",
        "name": "mine",
        "distribution": "tap-mine",
        "version": "1.2",
        "module": "tap_mine.driver",
        "manifest": False,
        "error": None,
    }
    assert rows["aio"]["manifest"] is True
    assert main(["plugins", "list"]) == 0
    assert "driver  mine" in capsys.readouterr().out


def test_the_doctor_finds_nothing_wrong_with_ours(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = doctor(capsys, "--json")
    assert status == 0
    for row in json.loads(out):
        if row["distribution"].startswith("tap-"):
            assert (row["problems"], row["remarks"]) == ([], [])


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        (GOOD, 0, "works, but it has no manifest"),
        (CARELESS, 0, "works, but td_close is never called: it is not marked with @hookimpl"),
        (CARELESS, 0, "works, but its api is the running core's HOOKS_VERSION"),
        (RAISES, 1, "cannot be used: RuntimeError: no such thing"),
        (MISSPELT, 1, "cannot be used: implements hooks that do not exist: td_clsoe (did you mean"),
        ("import nowhere_at_all\n", 1, "No module named 'nowhere_at_all'"),
        ("disk_info = 7\n", 1, "has no disk_info: not a tapcore driver"),
    ],
)
def test_the_doctor_says_what_is_to_be_done(
    capsys: pytest.CaptureFixture[str], install: Install, source: str, status: int, said: str
) -> None:
    install(source)
    got, out, _ = doctor(capsys)
    assert (got, said in out) == (status, True), out


def test_an_untrue_manifest_is_said_and_made_anew(
    capsys: pytest.CaptureFixture[str], install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(GOOD)
    assert main(["plugins", "manifest", "mine"]) == 0
    manifest = capsys.readouterr().out
    (folder / "tapcore-drivers.json").write_text(manifest.replace('"mine"', '"other"', 1))
    monkeypatch.setattr(registry_module, "_default", None)
    assert "works, but it has no manifest" in doctor(capsys)[1]
    (folder / "tapcore-drivers.json").write_text(manifest.replace("td_open", "td_close"))
    monkeypatch.setattr(registry_module, "_default", None)
    assert "its manifest is not true of it: hooks" in doctor(capsys)[1]
    (folder / "tapcore-drivers.json").write_text(manifest)
    monkeypatch.setattr(registry_module, "_default", None)
    assert "driver mine (tap-mine 1.2, tap_mine.driver)\ndriver " in doctor(capsys)[1]


@pytest.mark.parametrize("words", [["formats"], ["plugins", "doctor"]])
def test_debug_shows_where_a_driver_failed_to_load(
    capsys: pytest.CaptureFixture[str], install: Install, words: list[str]
) -> None:
    install(RAISES)
    main([*words, "--debug"])
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in work" in err
    main(words)
    assert "Traceback" not in capsys.readouterr().err


def test_what_a_file_needs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tapcore.create_image("disk.qcow2", 1 << 20)
    status, out, _ = doctor(capsys, "disk.qcow2")
    assert (status, out) == (0, "disk.qcow2: qcow2, qcow2 disk (qcow2): tap-qcow2 0.1.0\n")
    Path("archive.zip").write_bytes(b"PK\3\4" + bytes(600))
    status, out, _ = doctor(capsys, "disk.qcow2", "archive.zip")
    assert status == 1
    assert "archive.zip: is a " in out
    assert doctor(capsys, "missing.img")[0] == 1


def test_all_about_one_driver(capsys: pytest.CaptureFixture[str], install: Install) -> None:
    folder = install(GOOD)
    (folder / CONFORMANCE).write_text('{"checks": 31, "passed": 31}')
    assert main(["formats", "--long", "mine"]) == 0
    out = capsys.readouterr().out
    for line in (
        "licence:        MIT",
        "module:         tap_mine.driver",
        "    read: td_queue_read (tap_mine.driver:6)",
        "other hooks:\n    td_open: tap_mine.driver:4",
        "    nothing but its handle",
        "    checks: 31",
    ):
        assert f"{line}\n" in out, out
    assert "td_amend:" in out.partition("left out:")[2]
    assert main(["formats", "--long", "mine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hooks"]["td_close"] is None
    assert found["conformance"] == {"checks": 31, "passed": 31}


@pytest.mark.parametrize("handle", ["aio", "qcow2", "vmdk", "vhd"])
def test_where_the_hooks_of_ours_come_from(handle: str) -> None:
    details = format_details(handle)
    info = details.info
    assert info.drv is not None
    assert {hook.hook for hook in details.hooks if hook.where} == info.drv.implemented
    assert [*details.capabilities()] == [*info.capabilities]
    assert details.licence == "LGPL-2.1-or-later"


@pytest.mark.parametrize(
    "words", [["formats", "--long"], ["formats", "aio", "--filters"], ["plugins", "list", "x"]]
)
def test_what_does_not_go_together(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_doctor_knows_what_a_simple_driver_nearly_has(
    capsys: pytest.CaptureFixture[str], install: Install
) -> None:
    folder = install(
        "import tapcore\n\n\nclass Mine(tapcore.SimpleDriver):\n"
        '    handle, api, suffix = "mine", 1, (".mine",)\n\n'
        '    def pread(self, offset, length):\n        return b""\n\n'
        "    def pwrites(self, offset, data):\n        self.written = True\n"
    )
    records = folder.parent / "tap_mine-1.2.dist-info" / "entry_points.txt"
    records.write_text("[tapcore.drivers]\nmine = tap_mine.driver:Mine\n")
    status, out, _ = doctor(capsys)
    assert status == 0
    said = "works, but {} is nothing that a SimpleDriver has: did you mean {}?"
    for found, meant in (("suffix", "suffixes"), ("pwrites", "pwrite")):
        assert said.format(found, meant) in out, out

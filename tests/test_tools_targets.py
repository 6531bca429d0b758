"""What a new image may take the place of, and what not."""

import os
import shutil
from pathlib import Path

import pytest

import tapcore
from tapcore.tools.create import create_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image

MIB = 1 << 20


@pytest.fixture(scope="module")
def model_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grandparent, a parent with a data file, and a child."""
    home = tmp_path_factory.mktemp("family")
    create_image(f"{home}/old.qcow2", MIB)
    create_image(f"{home}/base.qcow2", MIB, options={"data_file": "base.data"})
    create_image(f"{home}/mid.qcow2", None, parent="qcow2:base.qcow2")
    create_image(f"{home}/child.qcow2", None, parent="qcow2:mid.qcow2")
    return home


@pytest.fixture
def family(model_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The same, and links to them; the content of each."""
    monkeypatch.chdir(shutil.copytree(model_family, tmp_path / "family"))
    os.symlink("base.qcow2", "link.qcow2")
    os.link("mid.qcow2", "hard.qcow2")
    return {name: Path(name).read_bytes() for name in os.listdir()}


ANCESTORS = ["mid.qcow2", "base.qcow2", "base.data", "link.qcow2", "hard.qcow2", "./mid.qcow2"]


def unchanged(family: dict[str, bytes]) -> bool:
    return {name: Path(name).read_bytes() for name in os.listdir()} == family


@pytest.mark.parametrize("target", ["child.qcow2", *ANCESTORS])
def test_a_new_image_takes_the_place_of_none_that_its_parent_needs(
    family: dict[str, bytes], target: str
) -> None:
    with pytest.raises(tapcore.UsageError, match=r"its own parent|is needed by child\.qcow2"):
        create_image(f"qcow2:{target}", None, parent="qcow2:child.qcow2", force=True)
    assert unchanged(family)


@pytest.mark.parametrize("target", ANCESTORS)
def test_a_copy_takes_the_place_of_none_that_its_source_or_parent_needs(
    family: dict[str, bytes], target: str
) -> None:
    with pytest.raises(tapcore.UsageError, match="is the source, or one of its parents"):
        tapcore.convert_image("child.qcow2", f"qcow2:{target}", force=True)
    with pytest.raises(tapcore.UsageError, match=r"is needed by child\.qcow2"):
        tapcore.convert_image(
            "old.qcow2", f"qcow2:{target}", parent="qcow2:child.qcow2", force=True
        )
    assert unchanged(family)


@pytest.mark.parametrize("target", [name for name in ANCESTORS if "data" not in name])
def test_no_parent_becomes_its_own_ancestor(family: dict[str, bytes], target: str) -> None:
    for unsafe in (False, True):
        with pytest.raises(tapcore.UsageError, match="its own ancestor"):
            rebase_image(f"qcow2:{target}", "qcow2:child.qcow2", unsafe=unsafe)
    assert unchanged(family)


@pytest.mark.parametrize(
    "data", ["new.qcow2", "child.qcow2", "mid.qcow2", "base.data", "hard.qcow2"]
)
def test_a_data_file_takes_the_place_of_none_of_them_either(
    family: dict[str, bytes], data: str
) -> None:
    for parent in ("", "qcow2:child.qcow2"):
        with pytest.raises(tapcore.UsageError):
            tapcore.convert_image(
                "child.qcow2", "new.qcow2", parent=parent, options={"data_file": data}, force=True
            )
    with pytest.raises(tapcore.UsageError):
        create_image(
            "new.qcow2", None, parent="child.qcow2", options={"data_file": data}, force=True
        )
    assert unchanged(family)


@pytest.mark.parametrize(
    "options",
    [
        {"cluster_size": "3"},
        {"no_such": "option"},
        {"cluster_size": "512", "compat": "1.1"},
        {"compat": "0.10", "data_file": "old.data"},
        {"data_file_raw": "on"},
        {"encrypt.format": "luks"},
        {"encrypt.format": "luks", "encrypt.key-file": "missing"},
    ],
)
def test_what_cannot_be_made_is_found_before_the_old_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old.qcow2", "old.data"):
        Path(name).write_bytes(b"precious")
    with pytest.raises(tapcore.TapError):
        create_image("qcow2:old.qcow2", 1 << 50, options=options, force=True)
    assert Path("old.qcow2").read_bytes() == Path("old.data").read_bytes() == b"precious"
    assert sorted(os.listdir()) == ["old.data", "old.qcow2"]


@pytest.mark.parametrize("handle", ["aio", "sync", "qcow", "qcow2", "vmdk"])
def test_a_disk_of_no_sectors_is_refused(tmp_path: Path, handle: str) -> None:
    with pytest.raises(tapcore.UsageError, match="at least one sector"):
        create_image(f"{handle}:{tmp_path}/new", 0)
    assert os.listdir(tmp_path) == []
    create_image(f"{handle}:{tmp_path}/new", MIB)
    for size in ("-1M", "0"):
        with pytest.raises(tapcore.UsageError, match="at least one sector"):
            resize_image(f"{handle}:{tmp_path}/new", size, shrink=True)
    with tapcore.open(f"{handle}:{tmp_path}/new", readonly=True) as disk:
        assert disk.size == MIB


def test_an_encrypted_image_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a key is derived in no time, not in seconds
    monkeypatch.setattr("tapcore.formats.luks.keys.iterations_for", lambda *_: 1000)
    (tmp_path / "key").write_bytes(b"secret")
    (tmp_path / "plain").write_bytes(bytes(MIB))
    options = {"encrypt.format": "luks", "encrypt.key-file": f"{tmp_path}/key"}
    (tmp_path / "b.qcow2").touch(0o666)
    create_image(f"{tmp_path}/a.qcow2", MIB, options=options)
    tapcore.convert_image(
        f"aio:{tmp_path}/plain", f"{tmp_path}/b.qcow2", options=options, force=True
    )
    for name in ("a.qcow2", "b.qcow2"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600

"""Descriptors and headers from strangers: clear errors, nothing outside the directory touched."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from cputime import CpuTime

import tapcore
from tapcore.tools.inspect import inspect_image
from vmdkwriters import descriptor, hosted

KINDS = {
    "vmfsRaw": "a raw device of its host",
    "vmfsRawDeviceMap": "a raw device of its host",
    "vmfsRDM": "a raw device of its host",
    "nonsense": "'nonsense'",
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_are_not_supported_are_named(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor(kind, ['RW 1 FLAT "/dev/sda" 0']))
    with pytest.raises(tapcore.NotSupportedError) as caught:
        tapcore.open(f"vmdk:{image}", readonly=True)
    assert kind in str(caught.value)
    assert KINDS[kind] in str(caught.value)
    assert inspect_image(f"vmdk:{image}").dangerous


@pytest.mark.parametrize("kind", ["VMFSRDM", "VMFSRAW", "WHATEVER"])
def test_extents_that_are_not_supported_are_named(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("custom", [f'RW 1 {kind} "x.vmdk"']))
    with pytest.raises(tapcore.NotSupportedError, match=kind):
        tapcore.open(f"vmdk:{image}", readonly=True)


def test_an_encrypted_disk_says_so(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    line = ['RW 1 FLAT "x" 0']
    for entries in (
        {"encryption.keySafe": '"vmware:key/list/(pair/...)"'},
        {"ddb.iofilters": '"vmwarevmcrypt"'},
    ):
        image.write_bytes(descriptor("monolithicFlat", line, **entries))
        with pytest.raises(tapcore.NotSupportedError, match="is encrypted"):
            tapcore.open(f"vmdk:{image}", readonly=True)


@pytest.mark.parametrize("named", ["absolute", "dots", "link", "url"])
def test_an_extent_outside_the_directory_is_not_opened(tmp_path: Path, named: str) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    secret = outside / "secret"
    secret.write_bytes(b"s" * 512)
    os.utime(secret, (1, 1))
    (home / "link.vmdk").symlink_to(secret)
    name = {
        "absolute": str(secret),
        "dots": "../outside/secret",
        "link": "link.vmdk",
        "url": "nbd://127.0.0.1/x",
    }[named]
    image = home / "disk.vmdk"
    image.write_bytes(descriptor("monolithicFlat", [f'RW 1 FLAT "{name}" 0']))
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.open(f"vmdk:{image}", readonly=True)
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.open(f"vmdk:{image}", readonly=False)
    assert secret.stat().st_atime == 1
    assert secret.read_bytes() == b"s" * 512
    if named != "link":  # only its target tells, and nothing is opened to look
        assert inspect_image(f"vmdk:{image}").dangerous
    if named != "url":
        with tapcore.open(f"vmdk:{image}", readonly=True, parents=str(outside)) as disk:
            assert disk.pread(0, length=1) == b"s"


def test_an_extent_must_not_be_the_image_itself(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("monolithicFlat", ['RW 1 FLAT "disk.vmdk" 0']))
    with pytest.raises(tapcore.TapError, match="names itself"):
        tapcore.open(f"vmdk:{image}", readonly=True)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "names no extents"),
        (["RW x FLAT"], "damaged extent in line 7"),
        (["RW 0 ZERO"], "names no extents"),
        (["RW"], "damaged extent in line 7"),
        (["RW 1 FLAT"], "damaged extent in line 7"),
        (["RW 1", 'FLAT "x.vmdk" 0'], "damaged extent in line 7"),
        (["RW 1 FLAT", '"x.vmdk" 0'], "damaged extent in line 7"),
        (['RW 1 SPARSE "x.vmdk'], "damaged extent in line 7"),
        (['RW 1 FLAT "x.vmdk" -1'], "damaged extent in line 7"),
        (['RW 1 FLAT "x.vmdk" 0x'], "damaged extent in line 7"),
        (["RW -1 ZERO"], "damaged extent in line 7"),
        (["RW 99999999999999999999 ZERO"], "impossible extent"),
        (['RW 2 FLAT "x.vmdk" 0'], "shorter than its descriptor says"),
        (['RW 1 FLAT "x.vmdk" 1'], "shorter than its descriptor says"),
        (['RW 1 FLAT "missing" 0'], "does not exist"),
        (['RW 1 SPARSE "x.vmdk"'], "not a sparse file"),
        (["RW 1 ZERO"] * 40000, "more than 32768 extents"),
        (['RW 9 SPARSE "s.vmdk"'], "has 8 sectors, and its descriptor says 9"),
    ],
)
def test_impossible_extents(tmp_path: Path, lines: list[str], problem: str) -> None:
    (tmp_path / "x.vmdk").write_bytes(b"x" * 512)
    (tmp_path / "s.vmdk").write_bytes(hosted(b"x" * 4096))
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("custom", lines))
    with pytest.raises(tapcore.TapError, match=problem):
        tapcore.open(f"vmdk:{image}", readonly=True)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"grainSize": 0}, "grains of 0 sectors"),
        ({"grainSize": 1 << 40}, "grains of"),
        ({"grainSize": 100}, "grains of 100 sectors"),
        ({"numGTEsPerGT": 0}, "tables of 0 entries"),
        ({"numGTEsPerGT": 1 << 31}, "tables of"),
        ({"capacity": 1 << 62}, "impossible size"),
        ({"capacity": 1 << 37}, "grain directory that lies outside"),
        ({"descriptorOffset": 1, "descriptorSize": 1 << 50}, "descriptor that lies outside"),
        ({"descriptorOffset": 1 << 60, "descriptorSize": 1}, "descriptor that lies outside"),
        ({"compressAlgorithm": 2}, "compression method 2"),
        ({"gdOffset": (1 << 64) - 1}, "no footer"),
    ],
)
def test_impossible_headers(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(hosted(b"x" * 4096, **fields))
    spent = CpuTime()
    with pytest.raises(tapcore.TapError, match=problem):
        tapcore.open(f"vmdk:{image}", readonly=True)
    assert spent.is_about(1)


def test_mutated_descriptors(tmp_path: Path, rng: random.Random) -> None:
    """Whatever comes of it, it is a disk or a TapError, soon."""
    (tmp_path / "x.vmdk").write_bytes(b"x" * 4096)
    good = descriptor(
        "twoGbMaxExtentFlat",
        ['RW 4 FLAT "x.vmdk" 4', "RW 8 ZERO", 'RW 4 FLAT "x.vmdk" 0'],
        parentFileNameHint='"x.vmdk"',
        encoding='"UTF-8"',
    )
    words = [b'"', b"\n", b"=", b" ", b"\0", b"\xff", b"../", b"/etc/passwd", b"9" * 30, b"RW "]
    image = tmp_path / "disk.vmdk"
    for _ in range(400):
        text = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(text))
            if rng.random() < 0.5:
                text[at : at + rng.randrange(4)] = rng.choice(words)
            else:
                text[at] = rng.randrange(256)
        image.write_bytes(text)
        errors: list[str] = []
        try:
            with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
                disk.pread(0, length=min(disk.size, 1 << 20))
                disk.info()
        except tapcore.TapError as exc:
            errors.append(str(exc))
        try:
            inspect_image(f"vmdk:{image}")
        except tapcore.TapError as exc:
            errors.append(str(exc))
        assert not any("\n" in error for error in errors)


def test_a_new_disk_does_not_replace_files_that_are_not_its_own(tmp_path: Path) -> None:
    other = tmp_path / "disk-flat.vmdk"
    other.write_bytes(b"precious")
    image = tmp_path / "disk.vmdk"
    with pytest.raises(tapcore.UsageError, match=r"disk-flat\.vmdk: exists already"):
        tapcore.create_image(f"vmdk:{image}", 4096, options={"subformat": "monolithicFlat"})
    assert other.read_bytes() == b"precious"
    assert not image.exists()


def test_inspect_tells_what_a_disk_names(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    lines = ['RW 4 FLAT "x.vmdk" 0', 'RW 4 FLAT "/etc/passwd" 0']
    image.write_bytes(
        descriptor("custom", lines, parentCID="1", parentFileNameHint='"../base.vmdk"')
    )
    seen = inspect_image(f"vmdk:{image}")
    assert seen.virtual_size == 4096
    assert seen.references == (
        ("extent", "x.vmdk"),
        ("extent", "/etc/passwd"),
        ("parent", "../base.vmdk"),
    )
    assert seen.dangerous
    image.write_bytes(hosted(b"x" * 4096, text=descriptor("monolithicSparse", lines[1:])))
    assert inspect_image(f"vmdk:{image}").dangerous
    own = ['RW 8 SPARSE "some-other-name.vmdk"']
    image.write_bytes(hosted(b"x" * 4096, text=descriptor("monolithicSparse", own)))
    assert not inspect_image(f"vmdk:{image}").dangerous

"""`-o azure=on`: what Azure takes, or a refusal that says what to do."""

import io
import json
import random
from pathlib import Path

import pytest
import pyvhdi
from dissect.hypervisor.disk.vhd import VHD

import tapcore
from tap_vhd.create import measure
from tap_vhd.footer import FIXED, unpack_footer
from tapcore import UsageError
from vhdtools import MIB, run

AZURE = {"azure": "on"}


def test_a_converted_disk_is_fixed_and_of_whole_mib(tmp_path: Path, rng: random.Random) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(rng.randbytes(3 * MIB))
    tapcore.convert_image(f"aio:{raw}", f"vhd:{image}", options=AZURE)
    content = image.read_bytes()
    footer = unpack_footer(content[-512:])
    assert (footer.disk_type, footer.current_size) == (FIXED, 3 * MIB)
    assert content[:-512] == raw.read_bytes()
    assert measure(3 * MIB, AZURE, []).required == len(content)
    said = json.loads(run("qemu-img", "info", "--output=json", "-f", "vpc", image))
    assert said["virtual-size"] == 3 * MIB
    assert VHD(io.BytesIO(content)).read(3 * MIB) == raw.read_bytes()
    file = pyvhdi.file()
    file.open(str(image))
    assert file.get_media_size() == 3 * MIB
    assert file.read_buffer_at_offset(3 * MIB, 0) == raw.read_bytes()
    file.close()


def test_another_size_is_refused_with_the_one_to_give_it(tmp_path: Path) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(bytes(3 * MIB + 512))
    with pytest.raises(UsageError, match=r"whole MiB, .* 3146240 bytes: resize it to 4M first"):
        tapcore.convert_image(f"aio:{raw}", f"vhd:{image}", options=AZURE)
    assert not image.exists()


@pytest.mark.parametrize(
    ("options", "text"), [({"subformat": "dynamic"}, "takes fixed images only")]
)
def test_what_contradicts_it_is_refused(options: dict[str, str], text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        tapcore.create_image(f"vhd:{tmp_path / 'x.vhd'}", MIB, options=AZURE | options)


def test_a_child_is_refused(tmp_path: Path) -> None:
    tapcore.create_image(f"vhd:{tmp_path / 'base.vhd'}", MIB)
    with pytest.raises(UsageError, match="a fixed VHD cannot have a parent"):
        tapcore.create_image(f"vhd:{tmp_path / 'x.vhd'}", None, parent="base.vhd", options=AZURE)


def test_off_is_the_default(tmp_path: Path) -> None:
    tapcore.create_image(f"vhd:{tmp_path / 'x.vhd'}", MIB + 512, options={"azure": "off"})
    assert (tmp_path / "x.vhd").stat().st_size < MIB

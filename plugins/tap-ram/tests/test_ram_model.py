"""A `ram:` disk is a bytearray, empty or loaded, and never touches the file it was loaded from."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapcore
from diskmodel import Model, Operation, contents, operations, padded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ram")


@settings(max_examples=80)
@given(content=contents.filter(bool), steps=operations)
def test_a_loaded_disk_is_a_bytearray(folder: Path, content: bytes, steps: list[Operation]) -> None:
    path = folder / "disk.img"
    path.write_bytes(content)
    with tapcore.open(f"ram:{path}", readonly=False) as disk:
        model = Model(disk, padded(content))
        for step in steps:
            model.apply(step)
        model.check()
    assert path.read_bytes() == content


@settings(max_examples=60)
@given(sectors=st.integers(1, 300), steps=operations)
def test_an_empty_disk_is_a_bytearray(sectors: int, steps: list[Operation]) -> None:
    with tapcore.open(f"ram:{sectors * 512}", readonly=False) as disk:
        model = Model(disk, bytes(sectors * 512))
        for step in steps:
            model.apply(step)
        model.check()

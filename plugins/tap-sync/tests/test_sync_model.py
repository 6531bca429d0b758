"""A `sync:` disk is a bytearray, whatever is done to it and whatever its file's size."""

from pathlib import Path

import pytest
from hypothesis import given, settings

import tapcore
from diskmodel import Model, Operation, contents, operations, padded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sync")


@settings(max_examples=80)
@given(content=contents, steps=operations)
def test_a_disk_is_a_bytearray(folder: Path, content: bytes, steps: list[Operation]) -> None:
    path = folder / "disk.img"
    path.write_bytes(content)
    with tapcore.open(f"sync:{path}", readonly=False) as disk:
        model = Model(disk, padded(content))
        for step in steps:
            model.apply(step)
        model.check()
    assert padded(path.read_bytes()) == model.data

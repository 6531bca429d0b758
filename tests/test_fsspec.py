"""fsspec's own tests of a file system that is read from; the others make files, and images are made
by `tapcore.create_image`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests

import tapcore
from tapcore.fsspecdisk import DiskFileSystem


class TestGet(AbstractGetTests, AbstractFixtures):  # type: ignore[misc]  # not annotated
    """What is fetched are the contents of raw disks; their folders are made beside fsspec."""

    test_get_directory_recursive = None  # makes a folder with the file system
    test_get_with_source_and_destination_as_list = None  # has files of a byte, no whole sector

    @pytest.fixture
    def fs(self) -> DiskFileSystem:
        found: DiskFileSystem = fsspec.filesystem("tapdisk")
        return found

    @pytest.fixture
    def fs_path(self, tmp_path: Path) -> str:
        (tmp_path / "disks").mkdir()
        return str(tmp_path / "disks")

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return os.path.join


def _fixture(name: str) -> Any:
    def fixture(self: Any, fs_join: Callable[..., str], fs_path: str) -> Iterator[str]:
        yield getattr(self, name)(LocalFileSystem(auto_mkdir=True), fs_join, fs_path)

    return pytest.fixture(fixture)


for _name in (
    *("bulk_operations_scenario_0", "glob_edge_cases_files"),
    *("dir_and_file_with_same_name_prefix", "10_files_with_hashed_names"),
):
    setattr(TestGet, f"fs_{_name}", _fixture(f"_{_name}"))


def test_a_folder_has_its_disks(tmp_path: Path) -> None:
    for name in ("a.qcow2", "b.img"):
        tapcore.create_image(str(tmp_path / name), 1 << 20)
    (tmp_path / "c.qcow2").write_bytes(b"damaged")
    (tmp_path / "deeper").mkdir()
    files = fsspec.filesystem("tapdisk")
    found = [(row["name"], row["type"], row["size"]) for row in files.ls(f"tapdisk://{tmp_path}/")]
    assert found == [
        (f"{tmp_path}/a.qcow2", "file", 1 << 20),
        (f"{tmp_path}/b.img", "file", 1 << 20),
        (f"{tmp_path}/deeper", "directory", 0),
    ]
    assert files.glob(f"{tmp_path}/*.qcow2") == [f"{tmp_path}/a.qcow2"]

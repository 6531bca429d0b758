"""A missing client is a skip on a developer's machine and a failure in CI."""

from pathlib import Path

import pytest

from peers import peer


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("ci", [None, "", "false", "0"])
def test_missing_on_a_developers_machine(
    path: Path, monkeypatch: pytest.MonkeyPatch, ci: str | None
) -> None:
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.skip.Exception, match="Debian package qemu-utils"):
        peer("qemu-io")


@pytest.mark.parametrize("ci", ["true", "1"])
def test_missing_in_ci(path: Path, monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.fail.Exception, match="nbdinfo is not installed"):
        peer("nbdinfo")


def test_installed(path: Path) -> None:
    program = path / "fio"
    program.touch(mode=0o755)
    assert peer("fio") == str(program)


def test_a_client_that_nobody_listed_is_a_mistake_in_the_test() -> None:
    with pytest.raises(KeyError):
        peer("qemu-ui")

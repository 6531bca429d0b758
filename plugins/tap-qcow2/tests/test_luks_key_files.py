"""The line's end in a key file: QEMU takes it for a part of the passphrase, people do not."""

from pathlib import Path

import pytest

import tapcore
from qcow2tools import MIB, qemu_img
from tapcore.cli.main import main
from tapcore.formats.luks import keys

LIGHT = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", params=[b"", b"\n", b"\r\n"])
def qemus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, Path]:
    """How the line ends in QEMU's key file, and the image that it made with it."""
    end: bytes = request.param
    folder = tmp_path_factory.mktemp("qemus")
    (folder / "key").write_bytes(b"a secret" + end)
    secret = f"secret,id=s,file={folder / 'key'}"
    qemu_img("create", "--object", secret, "-fqcow2", "-o", LIGHT, folder / "d", "1M")
    return end, folder / "d"


@pytest.mark.parametrize("asked", [b"", b"\n", b"\r\n"])
def test_an_image_opens_with_the_file_that_qemu_took_and_with_the_bare_word(
    asked: bytes, qemus: tuple[bytes, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    end, image = qemus
    Path("d").symlink_to(image)
    Path("ours").write_bytes(b"a secret" + asked)
    status = main(["convert", "-q", "qcow2:d", "aio:copy.img", "--key-file", "ours"])
    said = capfd.readouterr().err
    if asked == end or not end:  # the same file, or a line end that is none of the passphrase
        assert (status, said) == (0, "")
    else:
        assert status == 1
        assert said == "tapdisk: d: is encrypted with another passphrase than the one given\n"


@pytest.mark.parametrize("qemus", [b"\n"], indirect=True)
def test_at_most_two_passphrases_are_tried(
    qemus: tuple[bytes, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("d").symlink_to(qemus[1])
    Path("wrong").write_bytes(b"another\r\n")
    tried: list[bytes] = []
    derive = keys.derive

    def counted(name: str, secret: bytes, salt: bytes, rounds: int, length: int) -> bytes:
        if secret.startswith((b"a secret", b"another")):
            tried.append(secret)
        return derive(name, secret, salt, rounds, length)

    monkeypatch.setattr(keys, "derive", counted)
    given = tapcore.Keys.from_words(("wrong",))
    with pytest.raises(tapcore.UsageError, match="another passphrase"):
        tapcore.open("qcow2:d", readonly=True, keys=given)
    assert tried == [b"another", b"another\r\n"]


@pytest.mark.parametrize("command", ["create", "convert"])
def test_who_makes_an_image_is_told_of_the_newline(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("key").write_bytes(b"a secret\n")
    Path("s.img").write_bytes(bytes(MIB))
    options = ["-o", "encrypt.format=luks", "-o", "encrypt.key-file=key", "-q"]
    what = ["new.qcow2", "1M"] if command == "create" else ["s.img", "new.qcow2"]
    assert main([command, *what, *options]) == 0
    said = capfd.readouterr().err
    assert said.startswith("tapdisk: key file 'key' ends with a newline, which is not part of")
    assert said.count("\n") == 1
    Path("bare").write_bytes(b"a secret")
    assert main(["compare", "-q", "qcow2:new.qcow2", "s.img", "--key-file", "bare"]) == 0


def test_where_it_cannot_be_tried_it_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    Path("key").write_bytes(b"a secret\n")
    options = "encrypt.format=aes,encrypt.key-secret=s"
    qemu_img("create", "--object", "secret,id=s,data=x", "-fqcow2", "-o", options, "d", "1M")
    assert main(["convert", "-q", "qcow2:d", "copy.img", "--key-file", "key"]) == 0
    said = capfd.readouterr().err
    assert "it cannot be told whether that is right" in said
    assert said.count("\n") == 1

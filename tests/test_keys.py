"""Passphrases: from key files, for all images of a chain or for one, and never shown."""

import os
from pathlib import Path

import pytest

from tapcore import Keys, UsageError, passphrase_readings, read_key_file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"secret", b"secret"),
        (b"secret\n", b"secret"),
        (b"secret\n\n", b"secret\n"),
        (b" s\r\n", b" s"),
        (b"s\r", b"s\r"),
        (b"\0\xff", b"\0\xff"),
        (b"x" * (1 << 20), b"x" * (1 << 20)),
    ],
)
def test_a_passphrase_is_a_files_content_without_one_line_end(content: bytes, key: bytes) -> None:
    Path("key").write_bytes(content)
    assert Keys.from_words(("key",)).passphrase("any") == key


@pytest.mark.parametrize(
    ("content", "readings"),
    [
        (b"secret", (b"secret",)),
        (b"secret\n", (b"secret", b"secret\n")),
        (b"secret\r\n", (b"secret", b"secret\r\n")),
        (b"secret\n\n", (b"secret\n", b"secret\n\n")),
        (b"\0", (b"\0",)),
    ],
)
def test_a_line_end_may_be_a_part_of_it(content: bytes, readings: tuple[bytes, ...]) -> None:
    Path("key").write_bytes(content)
    assert passphrase_readings(read_key_file(Path("key"))) == readings
    assert passphrase_readings(content) == (content,)  # of a program: just that


@pytest.mark.parametrize(
    ("words", "image", "key"),
    [
        (("a",), "disk", b"A"),
        (("a", "b"), "disk", b"B"),
        (("a", "disk=b"), "disk", b"B"),
        (("a", "disk=b"), "other", b"A"),
        (("disk=a",), "other", None),
        (("disk=a", "disk=b"), "disk", b"B"),
        (("sub/../disk=b",), "disk", b"B"),
        (("qcow2:disk=b",), "disk", b"B"),
        (("link=b",), "disk", b"B"),
        (("disk=b",), "link", b"B"),
        (("x=y",), "disk", b"X"),
        (("di=sk=b",), "di=sk", b"B"),
        (("disk=x=y",), "disk", b"X"),
        ((), "disk", None),
    ],
)
def test_which_image_gets_which(words: tuple[str, ...], image: str, key: bytes | None) -> None:
    for name, content in (("a", b"A\n"), ("b", b"B\n"), ("x=y", b"X\n"), ("disk", b"")):
        Path(name).write_bytes(content)
    Path("sub").mkdir()
    Path("link").symlink_to("disk")
    assert Keys.from_words(words).passphrase(image) == key


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("missing", "key file 'missing': No such file or directory"),
        ("disk=missing", "key file 'missing': No such file or directory"),
        ("empty", "key file 'empty': is empty"),
        ("newline", "key file 'newline': is empty"),
        ("large", "key file 'large': is longer than a passphrase can be (1 MiB)"),
        (".", "key file '.': Is a directory"),
    ],
)
def test_a_key_file_that_does_not_do_is_named(word: str, message: str) -> None:
    Path("empty").touch()
    Path("newline").write_bytes(b"\n")
    with open("large", "wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(UsageError) as caught:
        Keys.from_words((word,))
    assert str(caught.value) == message


def test_a_key_may_come_from_a_pipe() -> None:
    read, write = os.pipe()
    os.write(write, b"from a pipe\n")
    os.close(write)
    try:
        assert Keys.from_words((f"/dev/fd/{read}",)).passphrase("x") == b"from a pipe"
    finally:
        os.close(read)


def test_from_python_and_never_shown() -> None:
    assert Keys.of(b"all").passphrase("x") == b"all"
    keys = Keys.of({"aio:a": b"secret"})
    assert keys.passphrase("./a") == b"secret"
    assert keys.passphrase("b") is None
    assert Keys.of(None) == Keys()
    assert "secret" not in repr(keys)
    assert "all" not in repr(Keys.of(b"all"))

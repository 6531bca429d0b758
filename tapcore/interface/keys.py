"""Passphrases of encrypted images: which image is opened with which, and where they come from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from tapcore.errors import UsageError, describe

KEY_FILE_OPTION: Final = "encrypt.key-file"
"""The option (`-o`) of formats that make encrypted images: the file with the passphrase."""

MAX_KEY_BYTES: Final = 1 << 20
"""A file longer than this is not a passphrase, but some other file named by mistake."""

Opener: TypeAlias = Callable[[str, int], int]
"""Opens a path with flags (`os.O_*`) for `open`."""

log = logging.getLogger(__name__)

_HANDLE = r"[A-Za-z_][A-Za-z0-9_]*:"


class FilePassphrase(bytes):
    """A passphrase that was read from a file: without the end of a line at its end.

    Attributes:
        whole: the file's content. QEMU's `secret,file=` takes all of it.
    """

    whole: bytes

    @classmethod
    def of(cls, content: bytes) -> FilePassphrase:
        """Of a file's content."""
        end = b"\r\n" if content.endswith(b"\r\n") else b"\n"
        new = cls(content.removesuffix(end))
        new.whole = content
        return new

    @property
    def had_line_end(self) -> bool:
        """Whether the file ends with one."""
        return self.whole != self


def readings(passphrase: bytes) -> tuple[bytes, ...]:
    """What a passphrase can be, the likely one first; two at most, as each may take long to try.

    A key file that ends with a newline was written by a person whose editor put it there, or its
    content was given to QEMU, to which the newline is part of the passphrase.
    """
    if isinstance(passphrase, FilePassphrase) and passphrase.had_line_end:
        return bytes(passphrase), passphrase.whole
    return (passphrase,)


@attrs.frozen(repr=False)
class Keys:
    """What the images of a chain are decrypted with. Never shown: there is no `repr`.

    Attributes:
        default: the passphrase of every image that has none of its own.
        by_image: (real path of an image, its passphrase).
    """

    default: bytes | None = None
    by_image: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(
        cls, keys: bytes | Mapping[str, bytes] | Mapping[os.PathLike[str], bytes] | None
    ) -> Keys:
        """From Python: one passphrase for all, or the path of each image and its own."""
        if keys is None:
            return cls()
        if isinstance(keys, bytes):
            return cls(default=keys)
        given: Any = keys  # a text is given easily, and would be taken apart
        if not isinstance(given, Mapping) or not all(isinstance(k, bytes) for k in given.values()):
            raise TypeError("a passphrase is bytes: one for all images, or one for each path")
        paths = (_real_path(os.fsdecode(name)) for name in keys)
        return cls(by_image=tuple(zip(paths, keys.values(), strict=True)))

    @classmethod
    def from_words(cls, words: tuple[str, ...], opener: Opener | None = None) -> Keys:
        """From the values of `--key-file FILE|IMAGE=FILE`; the files are read here.

        A later value for the same image replaces an earlier one.

        Args:
            words: the values.
            opener: as of `open`.

        Raises:
            UsageError: a file cannot be read, is empty, or is too long for a passphrase.
        """
        default: bytes | None = None
        by_image: dict[str, bytes] = {}
        for word in words:
            image, path = _split(word)
            key = read_key_file(path, opener)
            if image:
                by_image[_real_path(image)] = key
            else:
                default = key
        return cls(default, tuple(by_image.items()))

    def having(self, image_path: str, key: bytes) -> Keys:
        """The same, and the passphrase of one more image, if it has none of its own yet."""
        return Keys(self.default, (*self.by_image, (_real_path(image_path), key)))

    def passphrase(self, image_path: str) -> bytes | None:
        """The passphrase of an image, or None where none was given.

        Args:
            image_path: the image's path; symbolic links in it do not matter.
        """
        path = os.path.realpath(image_path)
        for named, key in self.by_image:
            if named == path:
                return key
        return self.default


def read_key_file(path: str | os.PathLike[str], opener: Opener | None = None) -> FilePassphrase:
    """A passphrase: the file's content (bytes) without one newline (or CR LF) at its end.

    Args:
        path: of the file.
        opener: as of `open`.

    Raises:
        UsageError: it cannot be read, holds nothing, or is too long.
    """
    try:
        with open(path, "rb", opener=opener) as file:
            content = file.read(MAX_KEY_BYTES + 1)
    except OSError as exc:
        text = f"key file '{path}': {describe(exc)}"
        raise UsageError(text, errno=exc.errno) from None
    if len(content) > MAX_KEY_BYTES:
        raise UsageError(f"key file '{path}': is longer than a passphrase can be (1 MiB)")
    key = FilePassphrase.of(content)
    if not key:
        raise UsageError(f"key file '{path}': is empty")
    return key


def warn_of_line_end(path: str) -> None:
    """Tell who makes an encrypted image how its key file is read, where there are two ways."""
    if read_key_file(path).had_line_end:
        log.warning(
            "key file '%s' ends with a newline, which is not part of the passphrase "
            "(QEMU's secret,file= takes it for a part: give QEMU a file without it)",
            path,
        )


def _split(word: str) -> tuple[str, str]:
    """The image, or "", and the file; either may have "=" in its name."""
    if "=" not in word or os.path.lexists(word):
        return "", word
    at = word.find("=")
    while at >= 0:
        if os.path.lexists(word[at + 1 :]):
            return word[:at], word[at + 1 :]
        at = word.find("=", at + 1)
    image, _, path = word.partition("=")
    return image, path


def _real_path(image: str) -> str:
    """The path behind `[HANDLE:]PATH`, symbolic links resolved."""
    handle = re.match(_HANDLE, image, re.ASCII)
    if handle is not None and not os.path.lexists(image):
        image = image[handle.end() :]
    return os.path.realpath(image)

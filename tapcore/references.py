"""Files that an image names: one policy, for every format, in one place.

An image is input from a stranger, and so are the names in it. By default a file that it names may
lie only in the directory tree of the image that the user named, symbolic links resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import attrs

from tapcore.errors import ReferencePolicyError, printable

__all__ = ["ReferencePolicy", "printable"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""A scheme (`nbd://`, `json:`), which other programs would follow; here it is just a file name."""


def _as_text(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    return tuple(os.fspath(path) for path in paths)


@attrs.frozen
class ReferencePolicy:
    """Which files an image may name.

    Attributes:
        directories: real paths of directory trees that are allowed besides the image's own.
        any: everything is allowed.
        none: nothing is allowed.
    """

    directories: tuple[str, ...] = attrs.field(default=(), converter=_as_text)
    any: bool = False
    none: bool = False

    @classmethod
    def from_words(cls, words: Iterable[str | os.PathLike[str]]) -> ReferencePolicy:
        """From the values of `--parents DIR|any|none`, in the order given."""
        words = _as_text(words)
        return cls(
            directories=tuple(os.path.realpath(w) for w in words if w not in ("any", "none")),
            any="any" in words,
            none="none" in words,
        )

    def and_home_of(self, image: str) -> ReferencePolicy:
        """The same, with the directory tree of an image: for a parent that is opened by itself, but
        may name what its child might."""
        home = os.path.dirname(os.path.realpath(image))
        return attrs.evolve(self, directories=(*self.directories, home))

    def resolve(self, named: str, *, image: str, root: str) -> str:
        """The real path of a file that an image names.

        Args:
            named: the name as the image records it; relative to the directory of `image`.
            image: path of the image that names it.
            root: path of the image that the user named (the chain's child).

        Returns:
            The path with all symbolic links resolved.

        Raises:
            ReferencePolicyError: not allowed; the text says what would allow it.
        """
        self._refuse_odd(named, image)
        path = os.path.realpath(os.path.join(os.path.dirname(os.path.realpath(image)), named))
        if self.any:
            return path
        if self.none:
            raise ReferencePolicyError(
                f"names the file '{printable(named)}', and --parents none forbids all", image=image
            )
        home = os.path.dirname(os.path.realpath(root))
        if any(_inside(path, tree) for tree in (home, *self.directories)):
            return path
        raise ReferencePolicyError(
            f"names the file '{printable(named)}' outside its directory; "
            f"--parents {printable(os.path.dirname(path))} would allow it",
            image=image,
        )

    def _refuse_odd(self, named: str, image: str) -> None:
        if not named or "\0" in named:
            raise ReferencePolicyError("names a file with an impossible name", image=image)
        if _URL.match(named) and not self._exists_beside(named, image):
            raise ReferencePolicyError(
                f"names '{printable(named)}', which is not a plain file name; it is never followed",
                image=image,
            )

    @staticmethod
    def _exists_beside(named: str, image: str) -> bool:
        if "/" in named:
            return False
        return os.path.lexists(os.path.join(os.path.dirname(os.path.realpath(image)), named))


def _inside(path: str, tree: str) -> bool:
    return f"{path}/".startswith(f"{tree.rstrip('/')}/")

"""Files that an image names: one policy, for every format, in one place.

An image is input from a stranger, and so are the names in it. By default a file that it names may
lie only in the directory tree of the image that the user named, symbolic links resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import attrs

from tapcore.errors import ReferencePolicyError, printable
from tapcore.interface.boundfile import BoundFile

_PROTOCOL = r"[^/:]*:"
_HANDLE = r"[A-Za-z_][A-Za-z0-9_]*:"


def has_protocol(named: str) -> bool:
    """Whether other programs would take a name for something else than a file's.

    QEMU does so with whatever has a colon before its first slash: URLs (`nbd+unix://`), its own
    protocols (`json:`, `fd:`, `host_device:`), and a plain name such as `10:00.img`, too.
    Here it is just a file's name.
    """
    return re.match(_PROTOCOL, named) is not None


def _is_handle(word: str) -> bool:
    return re.fullmatch(_HANDLE, word, re.ASCII) is not None


def _as_text(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    return tuple(os.fsdecode(path) for path in paths)


class Naming(NamedTuple):
    """An image that names files, and what its names are relative to.

    Attributes:
        name: of the image, for messages.
        directories: the one of its path as given, which is where QEMU looks, and the one in which
            the file really lies, where a link leads to it: that is used where the first has no
            such file.
    """

    name: str
    directories: tuple[str, ...]

    @classmethod
    def of_path(cls, path: str) -> Naming:
        """Of an image by its name alone."""
        return cls(path, (os.path.dirname(path), os.path.dirname(os.path.realpath(path))))

    @classmethod
    def of_file(cls, name: str, file: BoundFile) -> Naming:
        """Of an image whose file is known."""
        return cls(name, (os.path.dirname(file.path), os.path.dirname(file.real)))

    def path_of(self, named: str) -> str:
        """The path of a file that it names, links and all."""
        first, last = (os.path.join(directory, named) for directory in self.directories)
        return first if os.path.lexists(first) else last

    def has_beside(self, named: str) -> bool:
        """Whether there is a file of that very name, without any directory."""
        if "/" in named:
            return False
        return any(os.path.lexists(os.path.join(d, named)) for d in self.directories)


@attrs.frozen(init=False)
class ReferencePolicy:
    """Which files an image may name.

    Attributes:
        directories: real paths of directory trees that are allowed besides the image's own.
        any: every file is allowed.
        none: nothing is allowed.
        handles: of disks that are no files and lie on none, and are allowed.
    """

    directories: tuple[str, ...]
    any: bool
    none: bool
    handles: tuple[str, ...]

    # By hand: for a field with a converter attrs looks at signatures, a fifth of a short command.
    def __init__(
        self,
        directories: Iterable[str | os.PathLike[str]] = (),
        any: bool = False,
        none: bool = False,
        handles: tuple[str, ...] = (),
    ) -> None:
        self.__attrs_init__(_as_text(directories), any, none, handles)

    @classmethod
    def of(cls, parents: Parents | None) -> ReferencePolicy:
        """As functions take it (`parents=`); None and nothing: the default."""
        if isinstance(parents, ReferencePolicy):
            return parents
        if isinstance(parents, (str, bytes, os.PathLike)):
            parents = (parents,)
        return cls.from_words(parents or ())

    @classmethod
    def from_words(cls, words: Iterable[str | os.PathLike[str]]) -> ReferencePolicy:
        """From the values of `--parents DIR|HANDLE:|any|none`, in the order given."""
        words = _as_text(words)
        handles = [
            word
            for word in words
            if re.fullmatch(_HANDLE, word, re.ASCII) and not os.path.isdir(word)
        ]
        trees = [word for word in words if word not in ("any", "none", *handles)]
        return cls(
            directories=tuple(map(os.path.realpath, trees)),
            any="any" in words,
            none="none" in words,
            handles=tuple(word[:-1] for word in handles),
        )

    def and_tree(self, home: str) -> ReferencePolicy:
        """The same, with a directory's tree: that of a child, whose parent is opened by itself but
        may name what its child might."""
        return attrs.evolve(self, directories=(*self.directories, home)) if home else self

    def and_home_of(self, image: str) -> ReferencePolicy:
        """The same, with the tree of the directory in which a new image will lie."""
        return self.and_tree(os.path.dirname(os.path.realpath(image)))

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
        naming = Naming.of_path(image)
        home = os.path.dirname(os.path.realpath(root))
        return self.allowed_place(naming.path_of(named), named, image=naming, home=home)

    def allowed_place(self, path: str, named: str, *, image: Naming, home: str | None) -> str:
        """Where a file lies by now; refused where that is not allowed.

        Args:
            path: of the file, links and all (`Naming.path_of`).
            named: the name as the image records it.
            image: which names it.
            home: directory of the image that the user named, in whose tree the file may lie; empty:
                none; None: as that image's name leads there.

        Returns:
            The path with all symbolic links resolved.

        Raises:
            ReferencePolicyError: not allowed; the text says what would allow it.
        """
        self._refuse_odd(named, image)
        path = os.path.realpath(path)
        if self.any:
            return path
        if self.none:
            raise ReferencePolicyError(
                f"names the file '{printable(named)}', and --parents none forbids all",
                image=image.name,
            )
        if home is None:
            home = image.directories[-1]
        if any(tree and _inside(path, tree) for tree in (home, *self.directories)):
            return path
        raise ReferencePolicyError(
            f"names the file '{printable(named)}' outside its directory; "
            f"--parents {printable(os.path.dirname(path))} would allow it",
            image=image.name,
        )

    def _refuse_odd(self, named: str, image: Naming) -> None:
        if not named or "\0" in named:
            raise ReferencePolicyError("names a file with an impossible name", image=image.name)
        if has_protocol(named) and not image.has_beside(named):
            raise ReferencePolicyError(
                f"names '{printable(named)}', which is not a plain file name; it is never followed",
                image=image.name,
            )


Parents: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | ReferencePolicy
"""What may be said of the files that an image names: directories, "any", "none", or a policy."""


def _inside(path: str, tree: str) -> bool:
    return f"{path}/".startswith(f"{tree.rstrip('/')}/")

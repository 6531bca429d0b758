"""What a disk process may be lent for one change of a disk: by the daemon's word, not its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import attrs

from tapcore.daemon.spec import DiskSpec
from tapcore.daemon.verbs import parameters_of, taken
from tapcore.errors import UsageError
from tapcore.interface.registry import Registry
from tapcore.opening.names import split_name

BY_LOAN: Final = {"resume-io", "snapshot-live", "swap", "commit-live"}
"""Verbs of a disk process that open files."""


@attrs.frozen
class Loan:
    """The files of these images, as they are when the loan is used.

    Attributes:
        spec: with what the disk is attached: its image, and how that is opened.
        image: that is to take its place, `[HANDLE:]PATH`; empty: none.
        child: that is to be made on it; empty: none.
        directory: from which the two count.
        options: of the child's format.
        parent: its parent may be written.
    """

    spec: DiskSpec
    image: str = ""
    child: str = ""
    directory: str = "/"
    options: tuple[str, ...] = ()
    parent: bool = False

    @classmethod
    def for_change(cls, verb: str, spec: DiskSpec, params: Mapping[str, Any]) -> Loan:
        """Of a verb that somebody has called.

        Raises:
            RpcError: a parameter has the wrong type.
        """
        words = {"image", "child", "directory", "options"} & params.keys()
        takes = [each for each in parameters_of(cls) if each.name in words]
        given = taken(takes, {name: params[name] for name in words}, verb)
        return cls(spec, **given, parent=verb == "commit-live")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Loan:
        """From what `as_dict` gave."""
        spec = DiskSpec.of(given["spec"])
        rest = {name: value for name, value in given.items() if name != "spec"}
        return cls(spec, **{**rest, "options": tuple(rest["options"])})

    def as_dict(self) -> dict[str, Any]:
        """For the process that lends."""
        rest = {each.name: getattr(self, each.name) for each in attrs.fields(Loan)[1:]}
        return {**rest, "spec": self.spec.as_dict(), "options": list(self.options)}


def absolute_image(image: str, directory: str, registry: Registry) -> str:
    """An image's name, whatever the directory of the process is.

    Args:
        image: `[HANDLE:]PATH`.
        directory: from which the path counts.
        registry: the drivers.

    Raises:
        TapError: it names no image.
    """
    if not os.path.isabs(directory):
        raise UsageError("'directory' has to be an absolute path")
    found = split_name(image, registry)
    if found.drivertype and not registry.get(found.drivertype).file_backed:
        return image
    return str(attrs.evolve(found, name=os.path.join(directory, found.name)))


def option_pairs(words: tuple[str, ...]) -> dict[str, str]:
    """Options of a format, each given as KEY=VALUE.

    Raises:
        UsageError: one is not.
    """
    pairs = [word.partition("=") for word in words]
    if any(not equals or not key for key, equals, _ in pairs):
        raise UsageError("an option is KEY=VALUE")
    return {key: value for key, _, value in pairs}

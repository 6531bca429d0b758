"""Which host files a disk consists of, all images of its chain and all that they name."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from tapcore.disk import Disk
from tapcore.errors import ReferencePolicyError, TapError
from tapcore.files import ImageFile, host_file_size
from tapcore.files.byname import open_host_fd
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.identity import Identity, identity_of
from tapcore.interface.models import DiskDriver
from tapcore.interface.policy import ReferencePolicy

log = logging.getLogger(__name__)


def file_names_of(disk: Disk) -> Iterator[str]:
    """The names of the files that a disk consists of; some may not exist.

    Args:
        disk: open; perhaps for its metadata alone, so that not all of its files are open.
    """
    for dd in disk.state.disks.chain():
        yield dd.name
        yield from _named_by(dd)


def files_of(disk: Disk, what: str) -> dict[Identity, str]:
    """The files that a disk consists of, each with what to say of it."""
    return identities_of(file_names_of(disk), what)


def identities_of(names: Iterable[str], what: str) -> dict[Identity, str]:
    """Those of these files that exist, each with what to say of it."""
    found = (identity_of(name) for name in names)
    return {identity: what for identity in found if identity is not None}


def modes_of(names: Iterable[str]) -> Iterator[int]:
    """The permissions of those of these files that exist."""
    for name in names:
        try:
            yield stat.S_IMODE(os.stat(name).st_mode)
        except OSError:
            continue


def warn_of_refused_files(
    path: str, info: DiskInfo, references: ReferencePolicy, files: Mapping[str, str]
) -> None:
    """Tell who makes an image, or changes what it names, that opening it needs an option.

    Args:
        path: of the image.
        info: its driver.
        references: what was allowed now, and may have to be allowed again.
        files: of names that are no files': the file that such a disk lies on.
    """
    assert info.drv is not None
    if "td_inspect" not in info.drv.implemented:
        return
    with contextlib.suppress(OSError):
        fd = open_host_fd(path, os.O_RDONLY)
        try:
            said = info.drv.td_inspect(path, fd, host_file_size(fd))
        finally:
            os.close(fd)
        for _, named in said.references:
            try:
                references.resolve(files.get(named, named), image=path, root=path)
            except ReferencePolicyError as exc:
                log.warning("%s: will not be opened as it is: it %s", path, exc.message)


def own_file_names_of(dd: DiskDriver) -> Iterator[str]:
    """The names of the files that hold an image's own data; not of its parent."""
    yield dd.name
    yield from _data_files_of(dd, os.path.dirname(os.path.realpath(dd.name)))


def _data_files_of(dd: DiskDriver, home: str) -> Iterator[str]:
    yield from (os.path.join(home, named) for named in dd.drv.td_other_files(dd))
    for file in dd.options.opened:
        if isinstance(file, ImageFile):
            yield from file.lies_on()


def _named_by(dd: DiskDriver) -> Iterator[str]:
    """What an image names besides its parent, which is in the chain, as its driver tells it."""
    home = os.path.dirname(os.path.realpath(dd.name))
    yield from _data_files_of(dd, home)
    if "td_inspect" not in dd.drv.implemented:
        return
    try:
        fd = open_host_fd(dd.name, os.O_RDONLY)
    except TapError:  # a disk in memory
        return
    try:
        said = dd.drv.td_inspect(dd.name, fd, host_file_size(fd))
    except (TapError, OSError):  # it is open all the same, so its main file is known
        return
    finally:
        os.close(fd)
    for _, named in said.references:
        if named and "\0" not in named:
            yield os.path.join(home, named)

"""What a driver says of itself, in its module or in its manifest: nothing else has to be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tapcore.interface.magic import Magic
    from tapcore.interface.models import TapDisk


class FormatOption(NamedTuple):
    """An option of `td_create` or `td_amend` (`-o KEY=VALUE`).

    Attributes:
        name: the key, spelt as `qemu-img create -o help` spells it.
        help: one line for a person.
        choices: the values allowed; empty for any.
        default: the value when the option is not given.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()
    default: str = ""


class DiskInfo(NamedTuple):
    """A row of the driver table.

    A plugin fills in the first group; discovery adds the rest.

    Attributes:
        handle: the prefix that users type, at most 9 characters as in blktap.
        name: text for people.
        api: the version of the hooks that the plugin was written for, as a number: 1.
        single_handler: all disks of this driver share one process.
        use_ioemu: blktap's default backend; always False here, kept for its literature.
        suffixes: file suffixes (".qcow2") that a new image of this format is recognised by.
        file_backed: the image's name is a path in the file system.
        words_before_image: the name is that of another image, below this one (`open_below`): so
            many words with a colon behind each, then `[HANDLE:]PATH`. None: it is not. Such a
            driver is not `file_backed`.
        makes_unnamed: `td_create` makes the files of an image with `create_host_file` alone, by
            their final names, and opens them with `open_host_file` or `open_image_file` alone: so
            the core can keep them without a name until they are whole. For other drivers the core
            chooses a name beside the final one.
        create_options: what `-o` takes for a new image.
        amend_options: what `-o` takes for one that exists; `default` says nothing there.
        magic: bytes by which a file shows that it is an image of this format. With them `td_probe`
            need not be there: it is asked only where one of them is found that is not `sure`.
        idnum: position in the table.
        drv: the driver's operations.
        capabilities: what the driver can do, derived from the hooks that it implements.
        distribution: the installed distribution that brought it, and its version.
        error: why the driver cannot be used; empty for a good one.
    """

    handle: str
    name: str
    api: int
    single_handler: bool = False
    use_ioemu: bool = False
    suffixes: tuple[str, ...] = ()
    file_backed: bool = True
    words_before_image: int | None = None
    makes_unnamed: bool = False
    create_options: tuple[FormatOption, ...] = ()
    amend_options: tuple[FormatOption, ...] = ()
    magic: tuple[Magic, ...] = ()

    idnum: int = -1
    drv: TapDisk | None = None
    capabilities: tuple[str, ...] = ()
    distribution: str = ""
    version: str = ""
    error: str = ""

    @property
    def lasts(self) -> bool:
        """Whether its images are there when nobody has them open: in files, themselves or below."""
        return self.file_backed or self.words_before_image is not None

"""Changing options of an image that exists, in place."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tapcore.errors import UsageError
from tapcore.interface.access import Access
from tapcore.opening.names import ImageName
from tapcore.tools.formatoptions import as_texts, check_options
from tapcore.tools.openimage import open_image


def amend_image(
    name: ImageName,
    options: Mapping[str, str | os.PathLike[str]],
    *,
    access: Access | None = None,
) -> None:
    """Change what can be changed in place; the content stays.

    Args:
        name: `[HANDLE:]PATH`.
        options: the format's own (`-o`), at least one.
        access: which files it may name, with which keys and drivers; None: the defaults.

    Raises:
        TapError: with the image's name.
    """
    if not options:
        raise UsageError("nothing is to be changed: give -o KEY=VALUE", image=os.fsdecode(name))
    access = access or Access()
    with open_image(name, writing=True, access=access) as disk:
        dd = disk.state.disks
        info = access.registry.get(disk.handle)
        dd.drv.require("td_amend", dd.name)
        values = as_texts(options)
        check_options(dd.name, disk.handle, info.amend_options, values)
        with disk.driver():
            dd.drv.td_amend(dd, values)

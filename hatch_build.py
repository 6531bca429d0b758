"""What a wheel of tapcore has besides its modules: the man pages, made of the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface[Any]):
    """Into `share/man/man1`, where man(1) looks beside the `bin` of an environment on the path.

    They have the `-o` options of the formats that are installed where the wheel is built.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the pages; an editable install has none (`tapdisk man` shows them)."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        try:
            from tapcore.cli.manpages import write_pages
        finally:
            sys.path.remove(self.root)
        for page in write_pages(Path(mkdtemp(prefix="tapcore-man-"))):
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"

"""What a service that takes images from strangers admits: judged from what `inspect` found."""

from __future__ import annotations

import attrs

from tapcore.interface.inspection import Finding
from tapcore.sizes import format_size
from tapcore.tools.inspect import InspectedImage


@attrs.frozen
class Admission:
    """What is taken; whatever is not is a danger.

    Attributes:
        max_size: of the virtual disk, and of the file, in bytes; None: any.
        formats: handles; empty: any.
    """

    max_size: int | None = None
    formats: frozenset[str] = frozenset()

    def judge(self, found: InspectedImage) -> InspectedImage:
        """The same, with a danger for each limit that it passes."""
        passed = tuple(self._passed(found))
        return attrs.evolve(found, findings=(*passed, *found.findings)) if passed else found

    def _passed(self, found: InspectedImage) -> list[Finding]:
        dangers = []
        if self.formats and found.format not in self.formats:
            allowed = ", ".join(sorted(self.formats))
            text = f"is {found.format}, and only {allowed} is taken"
            dangers.append(Finding("danger", text, "format-not-taken"))
        largest = max(found.virtual_size or 0, found.file_size)
        if self.max_size is not None and largest > self.max_size:
            text = (
                f"is larger ({format_size(largest)}) than is taken ({format_size(self.max_size)})"
            )
            dangers.append(Finding("danger", text, "too-large"))
        return dangers

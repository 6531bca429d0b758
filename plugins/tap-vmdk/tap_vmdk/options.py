"""What `-o` takes for a new image."""

from __future__ import annotations

from typing import Final

from tapcore import FormatOption

MONOLITHIC_SPARSE: Final = "monolithicSparse"
MONOLITHIC_FLAT: Final = "monolithicFlat"
SPLIT_SPARSE: Final = "twoGbMaxExtentSparse"
SPLIT_FLAT: Final = "twoGbMaxExtentFlat"
STREAM: Final = "streamOptimized"

CREATE_OPTIONS: Final = (
    FormatOption(
        "subformat",
        "kind of disk",
        (MONOLITHIC_SPARSE, MONOLITHIC_FLAT, SPLIT_SPARSE, SPLIT_FLAT, STREAM),
        MONOLITHIC_SPARSE,
    ),
    FormatOption(
        "adapter_type",
        "virtual adapter (default: ide; of a streamOptimized disk lsilogic)",
        ("ide", "lsilogic", "buslogic", "legacyESX"),
    ),
    FormatOption("hwversion", "version of the virtual hardware, a number", (), "4"),
    FormatOption(
        "zeroed_grain",
        "zeroes that need no space (sparse; not for VirtualBox)",
        ("on", "off"),
        "off",
    ),
)

"""Colours that can be read on a black terminal and on a white one, since nobody knows which it is.

They are of the 256 that hardly a terminal changes. The sixteen that have names are what each user
makes of them, and of those yellow and bright cyan vanish on white, and blue on black. Each of these
has a contrast of 3.5 at least to both (WCAG 2.1, 1.4.11, asks for 3). Where a terminal has sixteen
only, none of them becomes yellow or white.
"""

from __future__ import annotations

from typing import Final

GREEN: Final = "color(28)"
TEAL: Final = "color(30)"
BLUE: Final = "color(33)"
VIOLET: Final = "color(98)"
RUST: Final = "color(131)"
PURPLE: Final = "color(163)"
RED: Final = "color(160)"
GREY: Final = "color(243)"

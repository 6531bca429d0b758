"""The parts of a disk: its extents, open."""

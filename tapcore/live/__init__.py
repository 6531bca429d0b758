"""Changes of the images of a disk while it is served: its clients stay, and wait for a moment."""

from tapcore.live.calls import LiveCalls
from tapcore.live.live import Live

__all__ = ["Live", "LiveCalls"]

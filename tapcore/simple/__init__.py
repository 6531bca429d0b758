"""The small door: a format as a class with a few methods in bytes, which may block."""

from tapcore.simple.driver import SimpleDriver

__all__ = ["SimpleDriver"]

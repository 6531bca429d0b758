"""Compressed clusters: the public name, for ever, of `formats.deflate`."""

from tapcore.formats.deflate import deflate, inflate

__all__ = ["deflate", "inflate"]

"""Filters: plugins around the drivers of a disk, that see every call and every answer."""

from tapcore.interface.filters.call import Call, Operation
from tapcore.interface.filters.filter import Filter
from tapcore.interface.filters.parameters import Rate, Seconds, Size, TextForm

__all__ = ["Call", "Filter", "Operation", "Rate", "Seconds", "Size", "TextForm"]

"""Filters: plugins around the drivers of a disk, that see every call and every answer."""

"""Persistent bitmaps."""

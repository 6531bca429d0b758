"""Chunked sparse disk images."""

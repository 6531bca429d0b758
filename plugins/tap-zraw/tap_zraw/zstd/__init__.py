"""Zstandard: frames (RFC 8878), the seekable format, and the library that unpacks."""

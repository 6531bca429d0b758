"""Compressed raw disks: zstd, xz and gzip."""

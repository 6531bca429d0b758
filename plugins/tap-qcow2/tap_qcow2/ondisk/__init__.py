"""The structures of the format as they lie on disk."""

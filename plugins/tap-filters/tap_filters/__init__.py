"""Filters around any disk image: trace, delay, error, limit, stats."""

"""Drivers for tests: one that is late, one that fails, and broken ones for the registry."""

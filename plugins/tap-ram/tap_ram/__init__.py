"""Disks in memory."""

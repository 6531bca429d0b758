"""Grains: what moves their bytes, and what makes new ones."""

"""Sparse files: what their headers, directories and tables say of where grains lie."""

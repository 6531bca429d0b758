"""The .xz format: streams of blocks, with an index at the end of each."""

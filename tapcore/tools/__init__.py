"""What the command line does, as functions: typed, without output, for programs too.

Each takes image names as people write them (`[HANDLE:]PATH`) or open disks, and raises TapError.
"""

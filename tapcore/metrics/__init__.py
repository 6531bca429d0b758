"""What a served disk does, counted where it happens, and read without asking it.

The front ends count (`meter`), a file for each disk is written now and then (`page`), and anybody
who may read that file can look (`reading`). How it lies there is told in `layout`.
"""

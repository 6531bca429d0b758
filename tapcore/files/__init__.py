"""The image-file layer: host files under every driver, which never block the loop for long.

Reads that the page cache can answer are answered at once; the rest go to a small thread pool, or,
with `--cache none`, to an asynchronous engine that a plugin brings (tap-aio's Linux AIO).
"""

from tapcore.files.byname import (
    create_host_file,
    open_host_file,
    remove_host_file,
    supersede_host_file,
)
from tapcore.files.hostfile import describe_host_file, host_file_size
from tapcore.files.imagefile import ImageFile
from tapcore.files.openfile import open_image_file

__all__ = [
    "ImageFile",
    "create_host_file",
    "describe_host_file",
    "host_file_size",
    "open_host_file",
    "open_image_file",
    "remove_host_file",
    "supersede_host_file",
]

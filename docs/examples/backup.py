"""Copy what a bitmap calls changed into a backup: backup.py IMAGE BITMAP BACKUP."""

import sys

import tapcore

MIB = 1 << 20

image, bitmap, backup = sys.argv[1:]
copied = 0
with tapcore.open(image) as disk, tapcore.open(backup, readonly=False) as target:
    for start, length in disk.bitmap_ranges(bitmap):
        for at in range(start, start + length, MIB):
            copied += target.pwrite(at, disk.pread(at, length=min(MIB, start + length - at)))
print(f"{copied} bytes copied")

"""The SHA-256 of the content of disks, whatever their format: digest.py IMAGE..."""

import hashlib
import sys

import tapcore

for image in sys.argv[1:]:
    with tapcore.open(image, parents="any") as disk:
        print(hashlib.file_digest(disk, "sha256").hexdigest(), image)

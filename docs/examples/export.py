"""Copy a disk to a plain file with holes, through a filter that counts: export.py IMAGE FILE."""

import sys

import tapcore


class Counter(tapcore.Filter):
    """How many bytes the drivers were asked for."""

    def __init__(self) -> None:
        self.read = 0

    def request(self, call: tapcore.FilterCall) -> None:
        """A request comes; the driver is to have it."""
        if call.op == "read":
            self.read += call.nb_sectors * 512
        call.go_on()


image, target = sys.argv[1:]
counter = Counter()
with tapcore.open(image, filters=(counter,)) as disk, open(target, "wb") as file:
    size, copied = disk.size, disk.copy_to(file)
    file.truncate(size)
print(f"{size} bytes, of which {counter.read} were read and {copied} written")

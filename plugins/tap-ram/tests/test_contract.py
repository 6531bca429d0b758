"""`ram:` keeps a driver's contract, empty and loaded from a file."""

from pathlib import Path

from tapcore.testkit import DriverContract


class TestEmpty(DriverContract):
    handle = "ram"
    volatile = True

    def make_image(self, size: int, name: str = "image") -> str:
        return str(size)


class TestLoaded(DriverContract):
    handle = "ram"
    volatile = True

    def make_image(self, size: int, name: str = "image") -> str:
        path = Path(self.folder, name)
        path.write_bytes(self.fresh_content(size))
        return str(path)

    def fresh_content(self, size: int) -> bytes:
        return (b"loaded from a file. " * (size // 20 + 1))[:size]

"""`aio:` keeps a driver's contract, in both cache modes."""

from tapcore.testkit import DriverContract


class TestAio(DriverContract):
    handle = "aio"
    any_file = True
    cache_modes = ("writeback", "none")

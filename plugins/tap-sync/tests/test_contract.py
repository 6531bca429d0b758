"""`sync:` keeps a driver's contract."""

from tapcore.testkit import DriverContract


class TestSync(DriverContract):
    handle = "sync"
    any_file = True

from tapcore.testkit import DriverContract


class TestChunks(DriverContract):
    handle = "chunks"

from tapcore.testkit import DriverContract


class TestChunk(DriverContract):
    handle = "chunk"

from tapcore.testkit import DriverContract


class TestChunkIo(DriverContract):
    handle = "chunkio"

"""The NBD server: constants, handshake and transmission as state machines without I/O."""

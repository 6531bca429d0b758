"""The disk's content on its way: read, written, zeroed, inflated and compressed."""

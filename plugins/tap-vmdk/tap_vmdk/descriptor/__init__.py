"""The descriptor: the text that says what a disk is made of."""

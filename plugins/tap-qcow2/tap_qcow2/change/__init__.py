"""Changes of an image as a whole: its size, its options, all of its content."""

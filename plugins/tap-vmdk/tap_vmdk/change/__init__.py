"""Changes of a whole disk: its size, its parent, its content id."""

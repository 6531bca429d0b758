"""Good drivers, and the bugs that are planted in them to see whether the kit finds them."""

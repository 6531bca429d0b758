"""What belongs to the process, not to a disk: threads, signals, forks."""

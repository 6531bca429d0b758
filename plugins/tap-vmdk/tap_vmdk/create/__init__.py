"""Making new disks."""

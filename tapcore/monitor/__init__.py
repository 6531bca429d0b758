"""What disks do, over HTTP on loopback: for Prometheus, and as a page for a browser."""

"""The tables in memory: what maps the disk, what counts clusters, and how both reach the disk."""

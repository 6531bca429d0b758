"""The control daemon, the processes of its disks, and the client of both."""

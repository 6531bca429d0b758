"""Virtual Disk Images of VirtualBox (VDI)."""

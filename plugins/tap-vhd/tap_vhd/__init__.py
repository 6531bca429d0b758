"""Virtual Hard Disk images (VHD)."""

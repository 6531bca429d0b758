"""Virtual hard disks of Hyper-V (VHDX)."""

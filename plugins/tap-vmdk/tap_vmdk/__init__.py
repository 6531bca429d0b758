"""VMware disk images (VMDK) for tapcore."""

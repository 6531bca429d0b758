"""What a LUKS header hides, in any disk image, as a disk."""

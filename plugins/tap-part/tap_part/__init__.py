"""A partition of any disk image, as a disk: MBR and GPT."""

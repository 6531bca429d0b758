"""Raw disk images with plain pread and pwrite."""

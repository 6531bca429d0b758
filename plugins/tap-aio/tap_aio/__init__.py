"""Raw disk images, asynchronous: through the page cache, or O_DIRECT with Linux AIO."""

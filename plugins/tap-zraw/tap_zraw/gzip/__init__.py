"""gzip (RFC 1952): one stream, or many small members as bgzip makes them."""

"""The front end of Xen's guests: requests and answers in a ring of memory that both sides have."""

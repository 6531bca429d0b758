"""From a name to an open chain: who recognises the file, what it may name, its parents."""

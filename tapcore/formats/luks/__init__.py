"""LUKS, version 1 and 2: headers, key slots, and how keys are made."""

"""The command line: parses, calls `tapcore.tools`, prints."""

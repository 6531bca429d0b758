"""One module for each command, imported when it is used; see `tapcore.cli.group.COMMANDS`."""

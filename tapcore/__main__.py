"""`python -m tapcore`: the command line, where the script `tapdisk` is not on the path."""

from tapcore.cli.entry import run

run()

"""`python -m tapcore.testkit`: pytest, and the conformance sheet."""

import sys

from tapcore.testkit.sheet import main

if __name__ == "__main__":
    sys.exit(main())

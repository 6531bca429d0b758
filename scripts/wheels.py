"""Wheels of projects, built in one process: wheels.py FOLDER PROJECT...

pip would start several processes for each, which takes most of the time of an installation.
"""

import contextlib
import os
import sys

from hatchling.build import build_wheel

folder = os.path.abspath(sys.argv[1])
for project in map(os.path.abspath, sys.argv[2:]):
    with contextlib.chdir(project):
        build_wheel(folder)

#!/bin/sh
# Wheels of tapcore and of every plugin, into dist/.
set -eu
cd "$(dirname "$0")/.."
rm -rf dist
set -- .
for project in plugins/*/pyproject.toml; do
    set -- "$@" "./${project%/pyproject.toml}"
done
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist "$@"
ls dist/*.whl

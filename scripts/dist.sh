#!/bin/sh
# Wheels and source distributions of tapcore and of every plugin, into dist/, looked at as a registry does.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
"$python" -c 'import build, twine' 2>/dev/null ||
    "$python" -m pip install --quiet --no-build-isolation --editable '.[dist]'
rm -rf dist
for project in pyproject.toml plugins/*/pyproject.toml; do
    "$python" -m build --no-isolation --outdir dist "$(dirname "$project")" >/dev/null
done
"$python" -m twine check --strict dist/*
ls dist/*.whl

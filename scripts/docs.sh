#!/bin/sh
# The documentation as a site, into build/docs/; a warning (a link that leads nowhere) is an error.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
"$python" -c 'import furo, myst_parser, sphinx' 2>/dev/null ||
    "$python" -m pip install --quiet --no-build-isolation --editable '.[docs]'
"$python" -m sphinx --builder html --quiet --fail-on-warning --keep-going \
    --conf-dir docs/site --doctree-dir build/doctrees docs build/docs
cp build/docs/README.html build/docs/index.html
echo "build/docs/index.html"

#!/bin/sh
# setup-venv.sh VENV: a virtual environment with tapcore, every plugin of plugins/ (editable) and the
# development tools. PYTHON names the interpreter (default python3).
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}

sh scripts/make-venv.sh "$venv"
rm -f "$venv"/.installed-* # the Makefile's stamp

# pip's own talk goes to a file, and is shown where it matters: when it fails.
log=$venv/setup.log
: >"$log"
quietly() {
    if ! "$@" >>"$log" 2>&1; then
        cat "$log" >&2
        echo "setup: failed: $*" >&2
        exit 1
    fi
}

set -- -e '.[dev]'
for project in plugins/*/pyproject.toml; do
    [ -e "$project" ] && set -- "$@" -e "${project%/pyproject.toml}"
done
echo "setup: installing tapcore, its plugins and the development tools"
# The build tools once, instead of once for each package (setuptools and wheel: for libaio's sdist).
quietly "$venv/bin/python" -m pip install 'hatchling>=1.27' setuptools wheel
quietly "$venv/bin/python" -m pip install --no-build-isolation "$@"
echo "setup: done"

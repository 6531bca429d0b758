#!/bin/sh
# setup-venv.sh VENV: a virtual environment with tapcore, every plugin of plugins/ (editable) and the
# development tools. PYTHON names the interpreter (default python3).
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: $python is not Python 3.11 or later; name one with PYTHON=..." >&2
    exit 1
fi

# Anew too where the interpreter went away, or where the folder was moved or copied: its scripts, and
# the editable installs, would still name the old place.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
    ! head -n 3 "$venv/bin/pip" | grep -qF "$(realpath "$venv")/bin/"; then
    echo "setup: creating $venv"
    rm -rf "$venv"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian keeps these two in a package of their own.
        if ! sh scripts/apt-install.sh python3-venv ||
            ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "setup: $python cannot make virtual environments: install python3-venv" >&2
            exit 1
        fi
    fi
    "$python" -m venv "$venv"
fi

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

#!/bin/sh
# make-venv.sh VENV: an empty virtual environment, anew where the old one does not work any more.
# PYTHON names the interpreter (default python3).
set -eu
cd "$(dirname "$0")/.."
venv=$1
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: $python is not Python 3.11 or later; name one with PYTHON=..." >&2
    exit 1
fi

# Anew too where the interpreter went away, or where the folder was moved or copied: its scripts, and
# the editable installs, would still name the old place.
if "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
    head -n 3 "$venv/bin/pip" | grep -qF "$(realpath "$venv")/bin/"; then
    exit 0
fi
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

#!/bin/sh
# install-tool.sh [PREFIX]: `tapdisk`, with every plugin and library, in an environment of its own
# below PREFIX (default ~/.local), a link to it in PREFIX/bin, and its man pages. Not editable: the checkout may go.
# By uv where it is installed, else by pip. PYTHON names the interpreter (default python3).
set -eu
cd "$(dirname "$0")/.."
prefix=${1:-$HOME/.local}
mkdir -p "$prefix/bin" "$prefix/share"
venv=$(realpath "$prefix/share")/tapcore
python=${PYTHON:-python3}

works() { # it is there, and was made for this place
    "$venv/bin/python" -c 'import sys; sys.exit(sys.prefix != sys.argv[1])' "$venv" 2>/dev/null
}
is_new_enough() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
pip_of_others() { # a pip that installs into other environments: to make it one of its own takes as long again
    where=$("$python" -c 'import sys; print(sys.executable)') &&
        "$python" -m pip --python "$where" --version >/dev/null 2>&1
}
if is_new_enough && command -v uv >/dev/null; then
    works || { rm -rf "$venv" && uv venv --quiet --no-project --python "$python" "$venv"; }
    install() { uv pip install --python "$venv/bin/python" "$@"; }
    uninstall() { uv pip uninstall --python "$venv/bin/python" "$@"; }
else
    if is_new_enough && pip_of_others; then
        works || { rm -rf "$venv" && "$python" -m venv --without-pip "$venv"; }
        pip() { "$python" -m pip --disable-pip-version-check --python "$venv/bin/python" "$@"; }
    else
        sh scripts/make-venv.sh "$venv"
        pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
    fi
    install() { pip install --no-compile "$@"; }
    uninstall() { pip uninstall --yes "$@"; }
fi

log=$(mktemp)
wheels=$(mktemp -d)
trap 'rm -rf "$log" "$wheels"' EXIT
remove_old() { # what has the same version would be left as it is
    old=$(cd "$wheels" && ls | sed 's/-.*//')
    # shellcheck disable=SC2086  # a list of words
    [ ! -e "$venv/bin/tapdisk" ] || uninstall $old
}
install_all() {
    # hatchling builds the wheels, and goes again; the others make the man pages, and stay
    install hatchling attrs click pluggy rich &&
        "$venv/bin/python" scripts/wheels.py "$wheels" . plugins/*/ &&
        remove_old &&
        install --upgrade --find-links "$wheels" 'tapcore[all]' "$wheels"/*.whl &&
        uninstall hatchling pathspec trove-classifiers &&
        "$venv/bin/python" -m compileall -q -j 0 "$venv/lib"
}
echo "setup: installing tapdisk and all plugins"
if ! install_all >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup: failed" >&2
    exit 1
fi
ln -sf "$venv/bin/tapdisk" "$prefix/bin/tapdisk"
"$prefix/bin/tapdisk" man --write "$prefix/share/man/man1" >/dev/null
echo "installed: $prefix/bin/tapdisk ($("$prefix/bin/tapdisk" --version))"
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) echo "setup: $prefix/bin is not in PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac

#!/bin/sh
# install-tool.sh [PREFIX]: `tapdisk`, with every plugin and library, in an environment of its own
# below PREFIX (default ~/.local), a link to it in PREFIX/bin, and its man pages. Not editable: the checkout may go.
set -eu
cd "$(dirname "$0")/.."
prefix=${1:-$HOME/.local}
mkdir -p "$prefix/bin" "$prefix/share"
venv=$(realpath "$prefix/share")/tapcore

sh scripts/make-venv.sh "$venv"
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}
log=$(mktemp)
wheels=$(mktemp -d)
trap 'rm -rf "$log" "$wheels"' EXIT
remove_old() { # pip would leave what has the same version as it is
    old=$(cd "$wheels" && ls | sed 's/-.*//')
    # shellcheck disable=SC2086  # a list of words
    [ ! -e "$venv/bin/tapdisk" ] || pip uninstall --yes $old
}
install() {
    # hatchling and the rest build the wheels, setuptools what has none; all of them go again
    pip install hatchling setuptools wheel attrs click pluggy rich &&
        "$venv/bin/python" scripts/wheels.py "$wheels" . plugins/*/ &&
        remove_old &&
        pip install --no-build-isolation --upgrade --find-links "$wheels" 'tapcore[all]' "$wheels"/*.whl &&
        pip uninstall --yes hatchling setuptools wheel
}
echo "setup: installing tapdisk and all plugins"
if ! install >"$log" 2>&1; then
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

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
tools="hatchling setuptools wheel" # once, instead of once for each package; gone afterwards
needed="attrs click pluggy rich"    # by the wheel's man pages too
set -- '.[all]'
for project in plugins/*/pyproject.toml; do
    set -- "$@" "./${project%/pyproject.toml}"
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "setup: installing tapdisk and all plugins"
# shellcheck disable=SC2086  # a list of words
if ! { pip install $tools $needed && pip install --no-build-isolation --upgrade "$@" &&
    pip uninstall --yes $tools; } >"$log" 2>&1; then
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

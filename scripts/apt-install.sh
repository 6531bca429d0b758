#!/bin/sh
# apt-install.sh PACKAGE...: install Debian packages without a question, as root or through sudo -n.
# With one line of explanation it exits 2 where it may not install anything, and 1 where it failed.
set -eu

if ! command -v apt-get >/dev/null; then
    echo "setup: no apt-get here; wanted: $*" >&2
    exit 2
fi
if [ "$(id -u)" -eq 0 ]; then
    sudo=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    echo "setup: not root; to install by hand: apt-get install $*" >&2
    exit 2
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    # $sudo is empty or two words
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=60 "$@" \
        >"$log" 2>&1 </dev/null
}

echo "setup: installing $*"
# The package lists may be missing or old: fetch them only when it does not work without.
if ! apt install --no-install-recommends "$@"; then
    if ! { apt update && apt install --no-install-recommends "$@"; }; then
        tail -n 5 "$log" >&2
        echo "setup: apt-get install $* failed" >&2
        exit 1
    fi
fi

#!/bin/sh
# The real clients and servers that the tests and benchmarks talk to: install those that are missing.
# Never fails: where one cannot be installed its tests are skipped (or fail, when CI is set).
set -eu
cd "$(dirname "$0")"

missing=
need() { # command package
    command -v "$1" >/dev/null || missing="$missing $2"
}
need qemu-img qemu-utils
need qemu-storage-daemon qemu-system-common
need nbdinfo libnbd-bin
need nbdsh python3-libnbd
need nbdkit nbdkit
need nbd-client nbd-client
need fio fio
need mkfs.ext4 e2fsprogs
need zsh zsh
need fish fish
need img_stat sleuthkit
need zstd zstd
need xz xz-utils
need sfdisk fdisk
need cryptsetup cryptsetup-bin
need systemd-analyze systemd

# libaio.so.1, of `--cache none` (Debian 13 has it as libaio1t64, and knows this name too).
has_libaio() {
    for file in /lib/*/libaio.so.1 /usr/lib/*/libaio.so.1 /lib*/libaio.so.1 /usr/lib*/libaio.so.1; do
        [ -e "$file" ] && return 0
    done
    return 1
}
has_libaio || missing="$missing libaio1"

[ -n "$missing" ] || exit 0
status=0
# shellcheck disable=SC2086  # a list of words
sh ./apt-install.sh $missing || status=$?
if [ "$status" -eq 1 ]; then # perhaps because of one of them: the others by themselves
    for package in $missing; do
        sh ./apt-install.sh "$package" || true
    done
fi
[ "$status" -eq 0 ] || echo "setup: going on; tests of what is still missing are skipped, or fail in CI" >&2

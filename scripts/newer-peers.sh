#!/bin/sh
# newer-peers.sh DIR [SUITE]: the NBD clients of a newer Debian (trixie) in DIR, for the tests.
# They are run from there, by their own loader, on this machine's files and sockets: no chroot, no
# root. `TAPCORE_NEWER_PEERS=DIR make test` has the tests use them. Takes about a minute, 400 MB.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: newer-peers.sh DIR [SUITE]" >&2
    exit 2
fi
command -v mmdebstrap >/dev/null || sh "$(dirname "$0")/apt-install.sh" mmdebstrap
packages=libnbd-bin,python3-libnbd,nbdkit,nbd-client,qemu-utils
exec mmdebstrap --variant=apt --include="$packages" "${2:-trixie}" "$1"

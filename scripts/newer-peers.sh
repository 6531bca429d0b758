#!/bin/sh
# newer-peers.sh DIR [SUITE]: NBD clients and servers of a newer Debian (trixie) in DIR, for tests and
# benchmarks. They are run from there, by their own loader, on this machine's files and sockets: no
# chroot, no root. `TAPCORE_NEWER_PEERS=DIR make test`, or `make bench`, uses them. Takes about a minute.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: newer-peers.sh DIR [SUITE]" >&2
    exit 2
fi
command -v mmdebstrap >/dev/null || sh "$(dirname "$0")/apt-install.sh" mmdebstrap
mkdir -p "$(dirname "$1")"
packages=libnbd-bin,python3-libnbd,nbdkit,nbd-client,qemu-utils
exec mmdebstrap --variant=apt --include="$packages" "${2:-trixie}" "$1"

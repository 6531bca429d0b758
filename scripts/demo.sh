#!/bin/bash
# demo.sh [IMAGE] [OPTION...]: serve IMAGE, or a demo disk, over NBD on a Unix socket until Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:-}
shift $(($# ? 1 : 0))
mkdir -p .demo

if [ -z "$image" ]; then
    disk=.demo/disk.img
    if [ ! -e "$disk" ]; then
        # 64 MiB, of which two blocks are stored: a text at the start and one in the middle.
        truncate -s 64M "$disk.new"
        printf 'Hello from the tapcore demo disk.\n' | dd of="$disk.new" conv=notrunc status=none
        printf 'This is 32 MiB into the tapcore demo disk.\n' |
            dd of="$disk.new" bs=1M seek=32 conv=notrunc status=none
        mv "$disk.new" "$disk"
        echo "made a demo disk: $disk (64 MiB, sparse)"
    fi
    image=aio:$disk
fi

socket=$PWD/.demo/nbd.sock
if [ ${#socket} -gt 100 ]; then # the kernel's limit is 107
    socket=$(mktemp -d)/nbd.sock
fi
if [ -S "$socket" ]; then
    if .venv/bin/python -c 'import socket, sys
socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$socket" 2>/dev/null; then
        echo "make run: already serving on $socket; stop that one first" >&2
        exit 1
    fi
    rm -f "$socket" # left by a server that was killed
fi

hints() {
    trap '' INT TERM # ends when the server closes its output
    local uri first=yes
    while read -r uri; do
        printf '%s\n' "$uri"
        [ -n "$first" ] || continue
        first=
        cat <<TXT

Serving $image. In another terminal:
  nbdinfo '$uri'
  qemu-io -f raw -c 'read -v 0 64' '$uri'
  qemu-io -f raw -c 'write -P 7 1M 1M' -c 'read -P 7 1M 1M' '$uri'
  nbdcopy '$uri' - | sha256sum
  mkdir -p /tmp/tapcore && nbdfuse /tmp/tapcore '$uri'     (then: /tmp/tapcore/nbd is the disk)
(apt-get install qemu-utils libnbd-bin fuse3)
Ctrl-C stops.
TXT
    done
}

exec .venv/bin/tapdisk serve "$image" --socket "$socket" "$@" > >(hints)

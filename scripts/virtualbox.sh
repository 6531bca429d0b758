#!/bin/sh
# virtualbox.sh DIR [OPTION...]: VirtualBox's tools for disk images (Debian sid, contrib) in DIR, for
# tests. They are run from there, by their own loader, on this machine's files: no chroot, no root, no
# kernel module. `TAPCORE_VIRTUALBOX=DIR make test` uses them. Takes about two minutes and 1 GiB.
# OPTIONs go to mmdebstrap.
set -eu
if [ $# -lt 1 ]; then
    echo "usage: virtualbox.sh DIR [OPTION...]" >&2
    exit 2
fi
command -v mmdebstrap >/dev/null || sh "$(dirname "$0")/apt-install.sh" mmdebstrap
root=$1
shift
mkdir -p "$(dirname "$root")"
# unpacked only: to configure it would build kernel modules
exec mmdebstrap --variant=extract --components=main,contrib \
    --aptopt='APT::Install-Recommends "false"' --include=virtualbox,virtualbox-source \
    "$@" sid "$root"

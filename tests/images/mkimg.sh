#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Usage: mkimg.sh SUITE OUT.tar.zst [MIRROR]
#
# Builds the root file system of a test host: Debian SUITE with systemd, Python, sshd and nothing that touches the machine's one
# real kernel. Without MIRROR the one of this machine's own apt is used if that is Debian's, else mmdebstrap's default.
set -eu
suite=$1
out=$2
mirror=${3:-}
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "$mirror" ]; then
  mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    sed -n 's/^Debian|Debian|//p' | head -n 1)
fi

include=systemd,systemd-sysv,dbus,python3,python3-apt,python3-cryptography,ca-certificates,curl,iproute2,openssh-server,procps

# Device, sysctl, module and network management would act on the host's kernel; logind and gettys have nothing to do here.
masked='systemd-udevd.service systemd-modules-load.service systemd-sysctl.service systemd-networkd.service
  systemd-resolved.service systemd-logind.service getty@.service console-getty.service'

exec mmdebstrap --variant=minbase --include="$include" \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook="upload $here/ct-init /sbin/ct-init" \
  --customize-hook='chmod 0755 "$1/sbin/ct-init"' \
  --customize-hook="chroot \"\$1\" systemctl mask $(echo "$masked" | tr -s '\n ' ' ') >/dev/null 2>&1 || true" \
  --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
  --customize-hook='mkdir -p "$1/root/.ssh" && chmod 0700 "$1/root/.ssh"' \
  --customize-hook='rm -f "$1"/etc/machine-id; : > "$1"/etc/machine-id' \
  "$suite" "$out" ${mirror:+"$mirror"}

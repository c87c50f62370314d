#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The Debian package: built, looked at by lintian, installed on a copy of this
# system with a systemd of its own, run, removed, purged.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly HERE
# shellcheck source=tests/systemd/private_systemd.sh
source "${HERE}/private_systemd.sh"
# shellcheck source=tests/systemd/operated_daemons.sh
source "${HERE}/operated_daemons.sh"

WORK="$(mktemp -d /tmp/postcopy-package-test.XXXXXX)"
readonly WORK PACKAGE="${WORK}/postcopy.deb"

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

is_installed() { in_system test -e "$1"; }

put_package() {
  install -D "${PACKAGE}" "$1/root/postcopy.deb"
  # This machine may keep documents out of all packages; then man pages would
  # be missing for no fault of this one.
  rm -f "$1"/etc/dpkg/dpkg.cfg.d/*
}

# --- What must hold ----------------------------------------------------------

ItIsBuilt() {
  MAINTAINER="A. Builder <builder@debian.org>" \
    packaging/build_deb.sh . . 0~test "${PACKAGE}"
  dpkg-deb --contents "${PACKAGE}" > "${WORK}/contents"
  local path
  for path in /usr/sbin/pageserverd /usr/sbin/faultd /usr/bin/postcopyctl \
    /usr/bin/faultreplay /usr/share/man/man1/faultreplay.1.gz \
    /libpostcopy_vmm.so /usr/include/postcopy_vmm.h \
    /usr/lib/systemd/system/faultd-firecracker.socket \
    /usr/share/man/man8/faultd.8.gz /usr/share/man/man8/pageserverd.8.gz \
    /usr/share/man/man1/postcopyctl.1.gz /usr/share/man/man5/postcopy.conf.5.gz \
    /usr/share/bash-completion/completions/postcopyctl; do
    grep --quiet -- "${path}$" "${WORK}/contents" || fail "no ${path} in it"
  done
}

LintianFindsNothing() {
  lintian --fail-on=error,warning --info --allow-root "${PACKAGE}" || fail "lintian"
}

TheManualHasEveryField() {
  local daemon field
  for daemon in pageserverd faultd; do
    while read -r field; do
      grep --quiet -- "^\*.*\*${field}\*\|^\*${field}\*" docs/man/postcopy.conf.5.scd ||
        fail "postcopy.conf(5) does not explain ${field}"
    done < <(sed -n 's/^#\([a-z_]*\): .*/\1/p' "packaging/config/${daemon}.conf")
  done
}

AnInstallationStartsNothing() {
  in_system dpkg --install /root/postcopy.deb > /dev/null
  in_system getent passwd postcopy > /dev/null || fail "no user"
  [[ "$(in_system stat --format=%U:%a /run/postcopy)" == postcopy:750 ]] ||
    fail "no folder"
  [[ "$(in_system systemctl is-active faultd.service faultd.socket)" == \
    $'inactive\ninactive' ]] || fail "faultd was started"
}

ItRuns() {
  secure_daemons
  in_system systemctl enable --quiet --now pageserverd.socket faultd.socket \
    pageserverd.service faultd.service
  control list --source=127.0.0.1:7400 --destination=127.0.0.1:7410 > /dev/null || fail "no daemons"
  in_system bash -c 'source /usr/share/bash-completion/completions/postcopyctl &&
    complete -p postcopyctl' > /dev/null || fail "no completion"
}

# Beside those that serve VMs.
ItMeasuresItsOwnDaemons() {
  in_system faultreplay run --ram=4MiB --touches=50 --repeats=1 > /dev/null ||
    fail "faultreplay does not find its daemons"
}

AnUpgradeLeavesTheDaemonsAlone() {
  local before after
  before="$(in_system systemctl show --property=MainPID faultd pageserverd)"
  in_system dpkg --install /root/postcopy.deb > /dev/null
  after="$(in_system systemctl show --property=MainPID faultd pageserverd)"
  [[ "${before}" == "${after}" ]] || fail "restarted: ${before}; ${after}"
}

ARemovalStopsThemAndLeavesTheConfiguration() {
  in_system dpkg --remove postcopy > /dev/null
  ! in_system pgrep --exact 'faultd' || fail "faultd runs"
  ! in_system pgrep --exact 'pageserverd' || fail "pageserverd runs"
  ! is_installed /usr/sbin/faultd || fail "a program is left"
  ! is_installed /usr/lib/systemd/system/faultd.service || fail "a unit is left"
  is_installed /etc/postcopy/faultd.conf || fail "the configuration is gone"
}

APurgeLeavesNothing() {
  # Its administrator's, which no package removes.
  in_system rm -r /etc/postcopy/tls
  in_system dpkg --purge postcopy > /dev/null
  ! is_installed /etc/postcopy || fail "/etc/postcopy is left"
  ! is_installed /var/lib/postcopy || fail "/var/lib/postcopy is left"
}

# --- Main --------------------------------------------------------------------

main() {
  local thing why
  trap 'private_systemd_stop; rm -rf "${WORK}"' EXIT
  for thing in ItIsBuilt LintianFindsNothing TheManualHasEveryField; do
    echo "${thing} (${SECONDS} s)"
    "${thing}"
  done
  why="$(private_systemd_why_not)"
  if grep --quiet __asan_init cmd/faultd/faultd; then
    why="the units forbid what a sanitizer does at the end"
  fi
  if [[ -n "${why}" ]]; then
    echo "SKIPPED: ${why}"
    exit 0
  fi
  export -f put_package
  export PACKAGE
  private_systemd_start put_package
  for thing in AnInstallationStartsNothing ItRuns ItMeasuresItsOwnDaemons \
    AnUpgradeLeavesTheDaemonsAlone ARemovalStopsThemAndLeavesTheConfiguration \
    APurgeLeavesNothing; do
    echo "${thing} (${SECONDS} s)"
    "${thing}"
  done
  echo "all held (${SECONDS} s)"
}

main

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The demo with both daemons as real units in a real systemd: VMMs start them by
# their sockets, a guest that writes all the time is migrated, the source ends,
# the guest is stopped and checked page by page. `./devtool demo --systemd`.
#
# usage: unit_demo.sh BUILT [--ram=SIZE] [--bandwidth=SIZE]
# The last line of stdout is the migration, as JSON.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly HERE BUILT="$1"
shift
# shellcheck source=tests/systemd/private_systemd.sh
source "${HERE}/private_systemd.sh"
# shellcheck source=tests/systemd/operated_daemons.sh
source "${HERE}/operated_daemons.sh"

ram=256MiB bandwidth=64MiB guest=kvm

say() { printf 'demo: %s\n' "$*" >&2; }

put_all() {
  "${HERE}/../../packaging/install.sh" "$1" "${BUILT}"
  install -D "${BUILT}/cmd/demovm/demovm" "$1/usr/libexec/demovm"
}

await_attached() {
  for _ in {1..300}; do
    ! vm_attached "$1" || return 0
    sleep 0.1
  done
  say "no VM attached to $1"
  return 1
}

show() {
  local daemon
  for daemon in pageserverd faultd; do
    say "${daemon}.service: $(property "${daemon}.service" StatusText)"
  done
}

# Ends a VMM and returns its exit code.
end_vm() {
  in_system systemctl kill --signal=TERM "vm-$1"
  until [[ "$(property "vm-$1" SubState)" != running ]]; do sleep 0.1; done
  return "$(property "vm-$1" ExecMainStatus)"
}

main() {
  local argument why
  for argument in "$@"; do
    case "${argument}" in
      --ram=*) ram="${argument#*=}" ;;
      --bandwidth=*) bandwidth="${argument#*=}" ;;
      *)
        say "demo --systemd takes --ram=SIZE and --bandwidth=SIZE, not ${argument}"
        exit 2
        ;;
    esac
  done
  [[ -e /dev/kvm ]] || {
    say "no /dev/kvm: threads of the VMM are the guest"
    guest=process
  }
  why="$(private_systemd_why_not)"
  [[ -z "${why}" ]] || {
    say "a systemd of its own ${why}"
    exit 1
  }
  export -f put_all
  export BUILT HERE
  trap private_systemd_stop EXIT
  private_systemd_start put_all
  in_system systemd-sysusers postcopy.conf
  in_system systemd-tmpfiles --create postcopy.conf
  secure_daemons
  in_system systemctl start pageserverd.socket faultd.socket
  say "VMMs attach, which starts the daemons"
  attach source pageserverd demo --guest="${guest}" --ram="${ram}"
  attach destination faultd demo --guest="${guest}" --ram="${ram}"
  await_attached pageserverd
  await_attached faultd
  show
  control migrate --vm=demo --source=127.0.0.1:7400 \
    --destination=127.0.0.1:7410 --bandwidth="${bandwidth}" --output=json
  show
  end_vm source || true
  say "the source is gone; stopping the guest and checking every page of it"
  end_vm destination || {
    say "THE GUEST IS NOT WHOLE"
    exit 1
  }
  say "the guest is whole"
  in_system systemctl stop pageserverd.service faultd.service
}

main "$@"

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The daemons as an operator has them, in a private systemd that has their units
# and programs. To be sourced behind private_systemd.sh.

# Flags of postcopyctl that reach the daemons, and what is in both configuration
# files for that.
control_flags=()
common_configuration=""

# Makes certificates for both daemons and for who drives them.
secure_daemons() {
  local directory=/etc/postcopy/tls
  in_system postcopyctl dev-certs --dir="${directory}" --hosts=127.0.0.1 > /dev/null
  in_system chown -R postcopy:postcopy "${directory}"
  control_flags=(--tls_dir="${directory}")
  common_configuration="tls_dir: \"${directory}\""
  configure pageserverd ""
  configure faultd ""
}

# Makes $2 the configuration of daemon $1, beside what both have.
configure() {
  printf '%s\n%s\n' "${common_configuration}" "$2" |
    in_system tee "/etc/postcopy/$1.conf" > /dev/null
}

control() { in_system postcopyctl "$@" "${control_flags[@]}"; }

# Starts a VMM: attach ROLE DAEMON NAME FLAG...
attach() {
  in_system systemd-run --quiet --unit="vm-$1" --property=RemainAfterExit=yes \
    /usr/libexec/demovm --role="$1" --vmm_socket="/run/postcopy/$2.sock" \
    --name="$3" "${@:4}"
}

property() { in_system systemctl show --value --property="$2" "$1"; }

vm_attached() { [[ "$(property "$1" StatusText)" == "1 VM, "* ]]; }

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Puts what has been built, and what it takes to run it, where it belongs in the
# file system below ROOT: for the package, and for tests that start the units.
#
# usage: install.sh ROOT BUILT    BUILT: bazel-bin, or the root of runfiles
set -euo pipefail

readonly ROOT="$1" BUILT="$2"
SOURCE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly SOURCE

# Installs file $2 as $3 with mode $1.
put() { install -D --mode="$1" --no-target-directory "$2" "${ROOT}$3"; }

put 755 "${BUILT}/cmd/pageserverd/pageserverd" /usr/sbin/pageserverd
put 755 "${BUILT}/cmd/faultd/faultd" /usr/sbin/faultd
put 755 "${BUILT}/cmd/postcopyctl/postcopyctl" /usr/bin/postcopyctl

for unit in "${SOURCE}"/systemd/*; do
  put 644 "${unit}" "/usr/lib/systemd/system/$(basename "${unit}")"
done
put 644 "${SOURCE}/sysusers/postcopy.conf" /usr/lib/sysusers.d/postcopy.conf
put 644 "${SOURCE}/tmpfiles/postcopy.conf" /usr/lib/tmpfiles.d/postcopy.conf
put 644 "${SOURCE}/udev/60-postcopy.rules" \
  /usr/lib/udev/rules.d/60-postcopy.rules
for config in pageserverd.conf faultd.conf; do
  put 644 "${SOURCE}/config/${config}" "/etc/postcopy/${config}"
done

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The real units of the package in a real systemd. Each function below that
# starts with a capital letter is one thing that must hold; they run in order,
# and the first that does not ends the test.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly HERE
# shellcheck source=tests/systemd/private_systemd.sh
source "${HERE}/private_systemd.sh"
# shellcheck source=tests/systemd/operated_daemons.sh
source "${HERE}/operated_daemons.sh"

readonly DAEMONS=(pageserverd faultd)
# Nothing below takes longer than a few seconds on an idle machine.
readonly PATIENCE=60

fail() {
  echo "FAILED: $*" >&2
  in_system journalctl --no-pager --lines=60 >&2 || true
  exit 1
}

# Waits until "$@" succeeds.
await() {
  local deadline=$((SECONDS + PATIENCE))
  until "$@"; do
    ((SECONDS < deadline)) || fail "waited in vain for: $*"
    sleep 0.1
  done
}

# A pattern, not a word.
# shellcheck disable=SC2053
has() { [[ "$(property "$1" "$2")" == $3 ]]; }
# In this order: one that has not been seen to die yet is active too.
restarted() { has "$1" NRestarts "$2" && has "$1" ActiveState active; }
journal_has() {
  in_system journalctl --no-pager --output=cat --unit="$1" |
    grep --quiet --fixed-strings -- "$2"
}

install_all() {
  packaging/install.sh "$1" .
  install -D cmd/demovm/demovm "$1/usr/libexec/demovm"
  install -D tests/systemd/stop_thread "$1/usr/libexec/stop_thread"
  # A hang is noticed sooner here, and a stop that is not extended ends sooner.
  local daemon
  for daemon in pageserverd faultd; do
    mkdir -p "$1/etc/systemd/system/${daemon}.service.d"
    printf '[Service]\nWatchdogSec=3s\nTimeoutStopSec=4s\nRestartSec=0\n' \
      > "$1/etc/systemd/system/${daemon}.service.d/quick.conf"
  done
}

# --- VMs and migrations ------------------------------------------------------

# Starts one of a guest that writes little: attach_quiet ROLE DAEMON
attach_quiet() {
  attach "$1" "$2" vm1 --guest=process --ram=32MiB --write_rate_mib_per_s=1
}

# Its state now, which comes before those it has been in.
state_at() {
  control get --migration_id=m1 "$@" --output=json 2> /dev/null |
    grep --only-matching '"state":"[A-Z]*"' | head -n 1 || true
}
destination_is() {
  [[ "$(state_at --destination=127.0.0.1:7410)" == "\"state\":\"$1\"" ]]
}

# Brings a migration to where pages are missing at the destination, with
# `seconds` of background left: begin_postcopy BANDWIDTH
begin_postcopy() {
  in_system systemctl start "${DAEMONS[@]}"
  attach_quiet source pageserverd
  attach_quiet destination faultd
  await vm_attached pageserverd
  await vm_attached faultd
  in_system systemd-run --quiet --unit=migration --property=RemainAfterExit=yes \
    postcopyctl migrate --vm=vm1 --migration_id=m1 --source=127.0.0.1:7400 \
    --destination=127.0.0.1:7410 --policy=postcopy-only --bandwidth="$1" \
    "${control_flags[@]}"
  await destination_is POSTCOPY
}

end_vms() {
  # One whose threads wait for pages that do not come hears no other signal.
  in_system systemctl kill --signal=KILL vm-source vm-destination 2> /dev/null ||
    true
  in_system systemctl stop migration vm-source vm-destination || true
  in_system systemctl reset-failed || true
}

stays() {
  has "$1" ActiveState deactivating &&
    has "$1" StatusText "told to end, but stays: 1 guest needs it *"
}

# --- What must hold ----------------------------------------------------------

UnitsAreWrittenWell() {
  local daemon unit
  for unit in packaging/systemd/*; do
    in_system systemd-analyze verify --man=no \
      "/usr/lib/systemd/system/$(basename "${unit}")"
  done
  for daemon in "${DAEMONS[@]}"; do
    in_system systemd-analyze security --no-pager --offline=true \
      --threshold=20 "/usr/lib/systemd/system/${daemon}.service" > /dev/null ||
      fail "${daemon}: exposure above 2.0"
  done
  # The two have no reason to be hardened differently.
  cmp <(sed -n '/^# --- Hardening/,/^\[Install\]/p' packaging/systemd/faultd.service) \
    <(sed -n '/^# --- Hardening/,/^\[Install\]/p' packaging/systemd/pageserverd.service)
}

EnabledAsInstalledItIsNotTriedAgain() {
  local daemon
  for daemon in "${DAEMONS[@]}"; do
    is_final "${daemon}"
    journal_has "${daemon}" "/etc/postcopy/${daemon}.conf: the control plane" ||
      fail "${daemon} does not say why"
    journal_has "${daemon}" "give --tls_dir" || fail "${daemon} does not say what to do"
  done
  in_system systemctl reset-failed
}

# The error of cachestat(2) under the filter of the units' file $1; 0: none.
cachestat_error() {
  local properties
  mapfile -t properties < <(sed -n 's/^SystemCall/--property=&/p' "$1")
  in_system systemd-run --quiet --pipe --wait "${properties[@]}" \
    python3 -c 'import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
page, told = (ctypes.c_uint64 * 2)(0, 4096), (ctypes.c_uint64 * 5)()
file = os.open("/etc/passwd", os.O_RDONLY)
print(0 if libc.syscall(451, file, page, told, 0) == 0 else ctypes.get_errno())'
}

# Without it a page that has to come from a disk holds up those behind it.
TheFilterLetsPagesBeAskedAfter() {
  local error
  error="$(cachestat_error packaging/systemd/pageserverd.service)"
  # ENOSYS: Linux before 6.5.
  [[ "${error}" == 0 || "${error}" == 38 ]] || fail "cachestat: error ${error}"
}

UserAndFolderAreMade() {
  in_system systemd-sysusers
  in_system systemd-tmpfiles --create postcopy.conf
  in_system getent passwd postcopy > /dev/null || fail "no user"
  [[ "$(in_system stat --format=%U:%G:%a /run/postcopy)" == \
    postcopy:postcopy:750 ]] || fail "/run/postcopy"
  EnabledAsInstalledItIsNotTriedAgain
  secure_daemons
}

AVmmStartsItsDaemonByTheSocket() {
  in_system systemctl start pageserverd.socket faultd.socket
  [[ "$(in_system stat --format=%U:%G:%a /run/postcopy/faultd.sock)" == \
    postcopy:postcopy:660 ]] || fail "faultd.sock"
  has faultd.service ActiveState inactive || fail "faultd runs already"
  attach_quiet destination faultd
  await vm_attached faultd
  in_system systemctl stop vm-destination
  await has faultd StatusText "0 VMs, 0 migrations"
}

ReadyMeansThatItServes() {
  in_system systemctl start "${DAEMONS[@]}"
  control list --source=127.0.0.1:7400 --destination=127.0.0.1:7410 > /dev/null || fail "not served"
  local daemon
  for daemon in "${DAEMONS[@]}"; do
    has "${daemon}" StatusText "0 VMs, 0 migrations" || fail "no status line"
    [[ "$(in_system ps -o user= -p "$(property "${daemon}" MainPID)")" == \
      postcopy ]] || fail "${daemon} is somebody else"
  done
}

ACrashIsFollowedByARestart() {
  local daemon
  for daemon in "${DAEMONS[@]}"; do
    in_system systemctl kill --signal=KILL "${daemon}.service"
    await restarted "${daemon}" 1
  done
}

AHangIsFollowedByARestart() {
  local daemon
  for daemon in "${DAEMONS[@]}"; do
    in_system systemctl kill --signal=STOP "${daemon}.service"
  done
  for daemon in "${DAEMONS[@]}"; do
    await restarted "${daemon}" 2
    journal_has "${daemon}" "Watchdog timeout" || fail "not by the watchdog"
  done
}

watchdog_timeouts() {
  in_system journalctl --no-pager --output=cat --unit="$1" |
    grep --count --fixed-strings "Watchdog timeout" || true
}

# All else of the daemon runs on: it answers, and would feed the watchdog.
AStuckFaultLoopIsFollowedByARestart() {
  begin_postcopy 1MiB
  local pid restarts timeouts
  pid="$(property faultd MainPID)"
  restarts="$(property faultd NRestarts)"
  timeouts="$(watchdog_timeouts faultd)"
  in_system systemd-run --quiet --unit=stuck /usr/libexec/stop_thread "${pid}" fault-loop
  await journal_has stuck "stopped 1"
  control health --destination=127.0.0.1:7410 > /dev/null || fail "does not answer"
  has faultd MainPID "${pid}" || fail "faultd has ended already"
  await restarted faultd $((restarts + 1))
  (($(watchdog_timeouts faultd) == timeouts + 1)) || fail "not by the watchdog"
  end_vms
  # It waits for its destination, which knows the migration no more.
  in_system systemctl kill --signal=KILL pageserverd.service
}

AReloadTakesOverWhatItCan() {
  local pid
  pid="$(property faultd MainPID)"
  configure faultd 'drain_timeout: "1h" vms_max: 7'
  in_system systemctl reload faultd
  await journal_has faultd \
    "changed: drain_timeout; waiting for a restart: vms_max"
  configure faultd 'drain_time: "2h"'
  ! in_system systemctl reload faultd 2> /dev/null || fail "took a wrong file"
  journal_has faultd "/etc/postcopy/faultd.conf:2:" || fail "does not say where it is wrong"
  has faultd MainPID "${pid}" || fail "did not survive it"
  has faultd ActiveState active || fail "is not active"
}

is_final() {
  ! in_system systemctl start "$1.service" 2> /dev/null || fail "$1 started"
  has "$1" ActiveState failed || fail "$1 tries again"
  has "$1" ExecMainStatus 2 || fail "$1: another reason"
}

AWrongConfigurationIsNotTriedAgain() {
  in_system systemctl stop faultd.service faultd.socket
  is_final faultd
  configure faultd ""
  in_system systemctl start faultd.socket faultd.service
}

# Where the filter does not know the call, pages come all the same.
deny_cachestat() {
  in_system mkdir -p /run/systemd/system/pageserverd.service.d
  printf '[Service]\nSystemCallFilter=~cachestat\n' |
    in_system tee /run/systemd/system/pageserverd.service.d/deny.conf > /dev/null
  in_system systemctl daemon-reload
  in_system systemctl restart pageserverd
}
allow_cachestat() {
  in_system rm /run/systemd/system/pageserverd.service.d/deny.conf
  in_system systemctl daemon-reload
}

AStopWaitsForGuestsThatMissPages() {
  deny_cachestat
  begin_postcopy 4MiB
  in_system systemctl stop --no-block pageserverd.service faultd.service
  await stays faultd
  await stays pageserverd
  journal_has faultd "told to end, but stays" || fail "says nothing"
  # TimeoutStopSec= passes meanwhile.
  await has faultd ActiveState inactive
  await has pageserverd ActiveState inactive
  has faultd Result success || fail "faultd was killed"
  has pageserverd Result success || fail "pageserverd was killed"
  has migration ExecMainStatus 0 || fail "the migration did not complete"
  in_system systemctl kill --signal=TERM vm-destination
  await has vm-destination SubState exited
  has vm-destination ExecMainStatus 0 || fail "the guest is not whole"
  end_vms
  allow_cachestat
}

ASecondSignalEndsItAtOnce() {
  begin_postcopy 1MiB
  in_system systemctl stop --no-block faultd.service
  await stays faultd
  in_system systemctl kill --signal=TERM faultd.service
  await has faultd ActiveState inactive
  journal_has faultd "ends although 1 guest will wait for ever" ||
    fail "does not say what it does"
  in_system systemctl stop --no-block pageserverd.service
  await stays pageserverd
  in_system systemctl kill --signal=TERM pageserverd.service
  await has pageserverd ActiveState inactive
  end_vms
}

# --- Main --------------------------------------------------------------------

main() {
  local why thing
  why="$(private_systemd_why_not)"
  if [[ -n "${why}" ]]; then
    echo "SKIPPED: ${why}"
    exit 0
  fi
  if grep --quiet __asan_init cmd/faultd/faultd; then
    echo "SKIPPED: the units forbid what a sanitizer does at the end"
    exit 0
  fi
  export -f install_all
  trap private_systemd_stop EXIT
  private_systemd_start install_all
  for thing in UnitsAreWrittenWell TheFilterLetsPagesBeAskedAfter \
    UserAndFolderAreMade \
    AVmmStartsItsDaemonByTheSocket ReadyMeansThatItServes \
    ACrashIsFollowedByARestart AHangIsFollowedByARestart \
    AReloadTakesOverWhatItCan AWrongConfigurationIsNotTriedAgain \
    AStopWaitsForGuestsThatMissPages ASecondSignalEndsItAtOnce \
    AStuckFaultLoopIsFollowedByARestart; do
    echo "${thing} (${SECONDS} s)"
    "${thing}"
  done
  private_systemd_stop
  [[ ! -e "${private_systemd_cgroup}" ]] || fail "left a cgroup"
  echo "all held (${SECONDS} s)"
}

main

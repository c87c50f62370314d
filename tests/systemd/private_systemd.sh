#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A real systemd of one's own, for tests and for the demo: in namespaces of its
# own, on a copy of this machine's root directory that is thrown away (an
# overlay in memory), with a cgroup of its own. To be sourced. What is mounted is
# never seen outside, and all of it ends with the process that holds it.
#
#   private_systemd_why_not            prints why it cannot be had; else nothing
#   private_systemd_start SETUP...     starts it; before that runs the command
#                                      SETUP with the new root's path behind it,
#                                      to put files there
#   in_system COMMAND...               runs a command in it
#   private_systemd_stop               ends it; call it in a trap on EXIT

# Tests have no sbin in theirs.
PATH="${PATH}:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

# The process that holds the namespaces, the first one in them, the cgroup.
private_systemd_holder=
private_systemd_init=
private_systemd_cgroup=
private_systemd_directory=

# How long systemd may take to start, in seconds.
readonly PRIVATE_SYSTEMD_PATIENCE=60

readonly PRIVATE_SYSTEMD_INIT=/lib/systemd/systemd

private_systemd_hierarchy() {
  findmnt --noheadings --first-only --types cgroup2 --output TARGET
}

private_systemd_why_not() {
  local program
  if ((EUID != 0)); then
    echo "needs root, to make namespaces and mounts"
    return
  fi
  for program in unshare nsenter findmnt "${PRIVATE_SYSTEMD_INIT}"; do
    command -v "${program}" > /dev/null || {
      echo "needs ${program}"
      return
    }
  done
  [[ -w "$(private_systemd_hierarchy)/cgroup.procs" ]] || {
    echo "needs a cgroup2 file system that it may write to"
    return
  }
  unshare --pid --fork --mount --cgroup --uts --ipc --net \
    --propagation private mount -t tmpfs tmpfs /tmp 2> /dev/null ||
    echo "may not make namespaces or mount in them"
}

# Makes the new root at $1 and enters it. In the new namespaces.
private_systemd_enter() {
  local directory="$1" root node
  root="${directory}/root"
  mount -t tmpfs -o mode=755 tmpfs "${directory}"
  mkdir "${directory}/upper" "${directory}/work" "${root}"
  mount -t overlay -o \
    "lowerdir=/,upperdir=${directory}/upper,workdir=${directory}/work" \
    overlay "${root}"
  mount -t proc proc "${root}/proc"
  mount -t sysfs sysfs "${root}/sys"
  mount -t cgroup2 cgroup2 "${root}/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "${root}/run"
  mount -t tmpfs tmpfs "${root}/tmp"
  mount -t tmpfs -o mode=755 tmpfs "${root}/dev"
  for node in null zero full random urandom tty kvm userfaultfd; do
    [[ -e "/dev/${node}" ]] || continue
    touch "${root}/dev/${node}"
    mount --bind "/dev/${node}" "${root}/dev/${node}"
  done
  mkdir "${root}/dev/shm" "${root}/dev/pts"
  mount -t tmpfs tmpfs "${root}/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=666 devpts "${root}/dev/pts"
  ln -s pts/ptmx "${root}/dev/ptmx"
  ln -s /proc/self/fd "${root}/dev/fd"

  # No unit of this machine's own runs in it but what a service needs.
  rm -rf "${root}/etc/systemd/system"
  mkdir -p "${root}/etc/systemd/system"
  printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' \
    > "${root}/etc/systemd/system/private.target"
  echo "0123456789abcdef0123456789abcdef" > "${root}/etc/machine-id"
}

# The first process of the namespaces: sets up and becomes systemd.
private_systemd_become() {
  local directory="$1"
  shift
  private_systemd_enter "${directory}"
  "$@" "${directory}/root"
  cd "${directory}/root" || exit
  mkdir -p old
  pivot_root . old
  umount --lazy /old
  # `container` tells systemd to leave the hardware alone.
  exec env --ignore-environment container=private \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    "${PRIVATE_SYSTEMD_INIT}" --system --unit=private.target \
    --log-level=warning --log-target=journal-or-kmsg \
    > /dev/null 2>&1 < /dev/null
}

in_system() {
  nsenter --target "${private_systemd_init}" --mount --pid --cgroup --uts \
    --ipc --net -- env --chdir=/ \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

private_systemd_start() {
  local deadline=$((SECONDS + PRIVATE_SYSTEMD_PATIENCE))
  private_systemd_directory="$(mktemp -d /tmp/private-systemd.XXXXXX)"
  private_systemd_cgroup="$(private_systemd_hierarchy)/$(
    basename "${private_systemd_directory}"
  )"
  mkdir "${private_systemd_cgroup}"
  export -f private_systemd_become private_systemd_enter
  export PRIVATE_SYSTEMD_INIT
  (
    echo "${BASHPID}" > "${private_systemd_cgroup}/cgroup.procs"
    exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc --net \
      --propagation private bash -euc 'private_systemd_become "$@"' - \
      "${private_systemd_directory}" "$@"
  ) &
  private_systemd_holder=$!
  until [[ -n "${private_systemd_init}" ]] &&
    [[ "$(in_system systemctl is-active private.target 2> /dev/null)" == active ]]; do
    if ((SECONDS > deadline)) || ! kill -0 "${private_systemd_holder}"; then
      echo "systemd did not start" >&2
      return 1
    fi
    private_systemd_init="$(cat \
      "/proc/${private_systemd_holder}/task/${private_systemd_holder}/children" \
      2> /dev/null)"
    # The list ends in a space.
    private_systemd_init="${private_systemd_init%% *}"
    sleep 0.05
  done
}

private_systemd_stop() {
  local directory
  [[ -n "${private_systemd_directory}" ]] || return 0
  # The first process takes all others with it.
  [[ -z "${private_systemd_init}" ]] ||
    kill -KILL "${private_systemd_init}" 2> /dev/null || true
  [[ -z "${private_systemd_holder}" ]] || {
    kill "${private_systemd_holder}" 2> /dev/null || true
    wait "${private_systemd_holder}" 2> /dev/null || true
  }
  # Those that entered by in_system are not all its children.
  echo 1 > "${private_systemd_cgroup}/cgroup.kill" 2> /dev/null || true
  for _ in {1..100}; do
    while read -r directory; do
      rmdir "${directory}" 2> /dev/null || true
    done < <(find "${private_systemd_cgroup}" -depth -type d 2> /dev/null)
    [[ -d "${private_systemd_cgroup}" ]] || break
    sleep 0.05
  done
  rmdir "${private_systemd_directory}"
  private_systemd_directory=
  private_systemd_init=
  private_systemd_holder=
}

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Records the traces of cmd/faultreplay/testdata/ again: what real programs
# touch after their memory has been taken away (docs/traces.md).
#
#   tools/record_traces.sh [DIRECTORY] [NAME...]
#
# NAME: linux_boot, redis, compile; without one all of them. As root, with
# /dev/userfaultfd, on Debian 12: installs what is recorded, builds faultreplay
# (unless FAULTREPLAY says where one is).
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/cmd/faultreplay/testdata}
shift || true
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(linux_boot redis compile)

# Touches that one trace has at most: it stays below 1 MiB.
events_max=20000

work=$(mktemp -d)
child=
cleanup() {
  [ -z "$child" ] || kill "$child" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

install_packages() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    "$@" >"$work/apt.log" 2>&1 || { cat "$work/apt.log"; exit 1; }
}

# Starts `faultreplay record NAME [FLAG...] -- COMMAND...` behind us; its
# standard input is file descriptor 9.
record() {
  local name=$1
  shift
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$faultreplay" record --out="$out/$name.trace" --events_max=$events_max \
    --ready_fd=8 "$@" 8>"$work/ready" <&9 &
  child=$!
  # Empty if it has ended instead.
  ready=$(head -n 1 "$work/ready")
  [ -n "$ready" ] || { wait "$child"; exit 1; }
}

finish() {
  wait "$child"
  child=
  "$faultreplay" info "$out/$1.trace"
}

# A kernel and a shell that ends at once, in QEMU's emulator; its RAM is empty
# when the recording begins, so every page of it is touched for the first time.
record_linux_boot() {
  install_packages qemu-system-x86 seabios busybox-static cpio
  local kernel
  kernel=$(apt-cache depends linux-image-cloud-amd64 |
    sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
  (cd "$work" && apt-get download "$kernel" >/dev/null 2>&1 &&
    dpkg-deb -x "$kernel"_*.deb kernel)
  cd "$work"
  mv kernel/boot/vmlinuz-* vmlinuz
  mkdir -p initramfs/bin initramfs/proc initramfs/sys
  cp /bin/busybox initramfs/bin/
  cat >initramfs/init <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox find /sys -type f | /bin/busybox wc -l
echo booted
/bin/busybox poweroff -f
INIT
  chmod +x initramfs/init
  (cd initramfs && find . | cpio -o -H newc 2>/dev/null | gzip -9) \
    >initramfs.gz
  mkfifo monitor
  exec 9<>monitor
  # The smallest mapping that counts leaves QEMU's own heap alone.
  record linux_boot --after=2s --region_min=64MiB -- \
    qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -m 80M -S \
    -display none -nodefaults -no-reboot -monitor stdio -serial file:serial \
    -kernel vmlinuz -initrd initramfs.gz -append "console=ttyS0 panic=-1"
  echo cont >&9
  finish linux_boot
  exec 9<&-
  grep -q booted serial || { tail serial; exit 1; }
}

# A server that has 60,000 keys, and clients that read some of them.
record_redis() {
  install_packages redis-server redis-tools
  cd "$work"
  exec 9</dev/null
  (
    until redis-cli -s redis.sock ping >/dev/null 2>&1; do sleep 0.1; done
    redis-benchmark -s redis.sock -q -t set -n 300000 -r 60000 -d 200 -P 16 \
      >/dev/null
    redis-cli -s redis.sock dbsize
    touch loaded
  ) &
  record redis --after_file=loaded -- \
    redis-server --save "" --appendonly no --port 0 --unixsocket redis.sock \
    --daemonize no --logfile redis.log
  redis-benchmark -s redis.sock -q -t get,set -n 4000 -r 60000 -d 200 -c 8
  redis-cli -s redis.sock shutdown nosave || true
  finish redis
}

# The compiler proper, half a second after its start. What it writes must be
# what it writes without us.
record_compile() {
  local command
  cd "$root"
  command=$(g++ -### -std=c++20 -O2 -I. -S -o - uffd/pending_faults.cc 2>&1 |
    sed -n 's/^ *\(.*cc1plus .*\)/\1/p')
  eval "$command" >"$work/alone.s"
  exec 9</dev/null
  eval "record compile --after=500ms -- $command" >"$work/recorded.s"
  finish compile
  cmp "$work/alone.s" "$work/recorded.s"
}

mkdir -p "$out"
out=$(cd "$out" && pwd)
faultreplay=${FAULTREPLAY:-}
if [ -z "$faultreplay" ]; then
  "$root/devtool" build //cmd/faultreplay
  faultreplay=$root/bazel-bin/cmd/faultreplay/faultreplay
fi
for name in "${names[@]}"; do
  case $name in
    linux_boot) record_linux_boot ;;
    redis) record_redis ;;
    compile) record_compile ;;
    *)
      echo "record_traces.sh: there is no recording of $name" >&2
      exit 2
      ;;
  esac
done

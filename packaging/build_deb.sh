#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the Debian package of what has been built.
#
# usage: build_deb.sh SOURCE BUILT VERSION OUTPUT.deb
#   SOURCE  the repository's root
#   BUILT   bazel-bin, or the root of runfiles
# MAINTAINER ("Name <address>") is who answers for it; SOURCE_DATE_EPOCH, if set,
# the date of all files.
set -euo pipefail

SOURCE="$(cd "$1" && pwd)"
BUILT="$(cd "$2" && pwd)"
readonly SOURCE BUILT VERSION="$3" OUTPUT="$4"
readonly DEBIAN="${SOURCE}/packaging/debian"
: "${MAINTAINER:?set it to \"Name <address>\"}"

WORK="$(mktemp -d /tmp/postcopy-deb.XXXXXX)"
trap 'rm -rf "${WORK}"' EXIT
readonly ROOT="${WORK}/postcopy"

# Installs file $2 as $3 with mode $1.
put() { install -D --mode="$1" --no-target-directory "$2" "${ROOT}$3"; }

# Installs stdin, compressed, as $1.
put_compressed() {
  mkdir -p "${ROOT}$(dirname "$1")"
  gzip --best --no-name > "${ROOT}$1"
}

library_directory() {
  printf '/usr/lib/%s' "$(dpkg-architecture --query DEB_HOST_MULTIARCH)"
}

put_programs() {
  local file
  "${SOURCE}/packaging/install.sh" "${ROOT}" "${BUILT}"
  put 755 "${BUILT}/cmd/faultreplay/faultreplay" /usr/bin/faultreplay
  for file in "${SOURCE}"/cmd/faultreplay/testdata/*.trace; do
    put 644 "${file}" "/usr/share/postcopy/traces/${file##*/}"
  done
  put 644 "${BUILT}/cmd/vmm_library/libpostcopy_vmm.so" \
    "$(library_directory)/libpostcopy_vmm.so"
  put 644 "${SOURCE}/cmd/vmm_library/postcopy_vmm.h" /usr/include/postcopy_vmm.h
  for file in "${ROOT}"/usr/sbin/* "${ROOT}"/usr/bin/*; do
    strip --remove-section=.comment --remove-section=.note "${file}"
  done
  strip --remove-section=.comment --remove-section=.note --strip-unneeded \
    "${ROOT}$(library_directory)/libpostcopy_vmm.so"
}

put_documents() {
  local page name section
  for page in "${SOURCE}"/docs/man/*.scd; do
    name="$(basename "${page}" .scd)"
    section="${name##*.}"
    scdoc < "${page}" | put_compressed "/usr/share/man/man${section}/${name}.gz"
  done
  mkdir -p "${ROOT}/usr/share/bash-completion/completions"
  "${BUILT}/cmd/postcopyctl/postcopyctl" completion bash \
    > "${ROOT}/usr/share/bash-completion/completions/postcopyctl"
  put 644 "${DEBIAN}/copyright" /usr/share/doc/postcopy/copyright
  put_compressed /usr/share/doc/postcopy/changelog.gz < "${SOURCE}/CHANGELOG.md"
  printf 'postcopy (%s) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- %s  %s\n' \
    "${VERSION}" "${MAINTAINER}" \
    "$(date --utc --rfc-email --date="@${SOURCE_DATE_EPOCH:-$(date +%s)}")" |
    put_compressed /usr/share/doc/postcopy/changelog.Debian.gz
  put 644 "${DEBIAN}/lintian-overrides" \
    /usr/share/lintian/overrides/postcopy
}

# Prints what the programs are linked against, as packages.
dependencies() {
  (
    cd "${WORK}"
    mkdir -p debian
    printf 'Source: postcopy\n\nPackage: postcopy\nArchitecture: any\n' \
      > debian/control
    dpkg-shlibdeps -O --ignore-missing-info "${ROOT}"/usr/sbin/* "${ROOT}"/usr/bin/* \
      "${ROOT}$(library_directory)/libpostcopy_vmm.so" 2> /dev/null |
      sed -n 's/^shlibs:Depends=//p'
  )
}

put_control() {
  local script
  mkdir "${ROOT}/DEBIAN"
  sed -e "s|@VERSION@|${VERSION}|" \
    -e "s|@ARCHITECTURE@|$(dpkg --print-architecture)|" \
    -e "s|@MAINTAINER@|${MAINTAINER}|" \
    -e "s|@INSTALLED_SIZE@|$(du --summarize --block-size=1K "${ROOT}" | cut -f 1)|" \
    -e "s/@DEPENDS@/$(dependencies)/" \
    "${DEBIAN}/control.in" > "${ROOT}/DEBIAN/control"
  echo "activate-noawait ldconfig" > "${ROOT}/DEBIAN/triggers"
  for script in postinst prerm postrm; do
    put 755 "${DEBIAN}/${script}" "/DEBIAN/${script}"
  done
  (
    cd "${ROOT}"
    find etc -type f -printf '/%p\n' | sort > DEBIAN/conffiles
    find usr -type f -print0 | sort --zero-terminated |
      xargs --null md5sum > DEBIAN/md5sums
  )
  chmod 644 "${ROOT}"/DEBIAN/{control,conffiles,md5sums,triggers}
}

umask 022
put_programs
put_documents
put_control
# Inherited from who built it, perhaps.
find "${ROOT}" -type d -exec chmod 755 {} +
dpkg-deb --root-owner-group -Zxz --build "${ROOT}" "${OUTPUT}" > /dev/null

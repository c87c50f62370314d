#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Joins the tracefiles that one test left behind. Bazel passes the directory and
# the file to write; lcov's format may be concatenated, and genhtml adds up
# records of one source file.
set -euo pipefail

for arg in "$@"; do
  case "${arg}" in
    --coverage_dir=*) coverage_dir="${arg#*=}" ;;
    --output_file=*) output_file="${arg#*=}" ;;
  esac
done

find "${coverage_dir}" -name '*.dat' -exec cat {} + > "${output_file}"

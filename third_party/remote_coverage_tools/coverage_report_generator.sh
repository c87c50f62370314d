#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Joins the tracefiles of all tests, whose names Bazel passes in a file.
set -euo pipefail

for arg in "$@"; do
  case "${arg}" in
    --reports_file=*) reports_file="${arg#*=}" ;;
    --output_file=*) output_file="${arg#*=}" ;;
  esac
done

xargs --no-run-if-empty --delimiter='\n' cat < "${reports_file}" \
  > "${output_file}"

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What bash completes, by the script that `postcopyctl completion` prints.
set -euo pipefail

readonly POSTCOPYCTL=cmd/postcopyctl/postcopyctl

# shellcheck source=/dev/null
source <("${POSTCOPYCTL}" completion bash)

# expect "WORDS..." "REPLIES": the last word is the one to complete.
expect() {
  local replies
  read -r -a COMP_WORDS <<< "$1"
  # A line that ends in a space begins a new word.
  [[ "$1" != *" " ]] || COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _postcopyctl
  replies="${COMPREPLY[*]}"
  if [[ "${replies}" != "$2" ]]; then
    echo "FAILED: \"$1\" completes to \"${replies}\", not \"$2\"" >&2
    exit 1
  fi
}

expect "postcopyctl sw" "switch-over"
expect "postcopyctl comp" "completion"
expect "postcopyctl list " ""
expect "postcopyctl migrate --bandw" "--bandwidth="
expect "postcopyctl migrate --compr" "--compress"
expect "postcopyctl list --output = j" "json"
expect "postcopyctl list --output =" "table json"
expect "postcopyctl migrate --policy = pre" "precopy-only"
expect "postcopyctl migrate --source = h" ""

# Each command that the help lists can be completed.
while read -r name; do
  expect "postcopyctl ${name}" "${name}"
done < <("${POSTCOPYCTL}" help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')

[[ "$(complete -p postcopyctl)" == "complete -F _postcopyctl postcopyctl" ]]
"${POSTCOPYCTL}" completion | cmp - <("${POSTCOPYCTL}" completion bash)
if "${POSTCOPYCTL}" completion fish 2> /dev/null; then
  echo "FAILED: there is nothing for fish" >&2
  exit 1
fi

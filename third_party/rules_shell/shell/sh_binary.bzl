# SPDX-License-Identifier: Apache-2.0
"""Stand-in for @rules_shell//shell:sh_binary.bzl."""

sh_binary = native.sh_binary

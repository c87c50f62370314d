# SPDX-License-Identifier: Apache-2.0
"""Stand-in for @rules_shell//shell:sh_test.bzl."""

sh_test = native.sh_test

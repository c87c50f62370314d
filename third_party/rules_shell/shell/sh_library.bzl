# SPDX-License-Identifier: Apache-2.0
"""Stand-in for @rules_shell//shell:sh_library.bzl."""

sh_library = native.sh_library

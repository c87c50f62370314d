# SPDX-License-Identifier: Apache-2.0
"""Stand-in for @rules_cc//cc/common:cc_info.bzl."""

load(":private.bzl", "native_cc_info")

CcInfo = native_cc_info

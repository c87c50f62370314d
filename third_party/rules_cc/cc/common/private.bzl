# SPDX-License-Identifier: Apache-2.0
"""A second name for the built-in provider.

Starlark refuses `CcInfo = CcInfo` in one file, so the name passes through two.
"""

native_cc_info = CcInfo  # buildifier: disable=native-cc-info

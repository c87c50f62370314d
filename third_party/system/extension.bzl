# SPDX-License-Identifier: Apache-2.0
"""The system libraries, for MODULE.bazel."""

load(":repositories.bzl", "system_repositories")

def _system_libraries_impl(_module_ctx):
    system_repositories()

system_libraries = module_extension(implementation = _system_libraries_impl)

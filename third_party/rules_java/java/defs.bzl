# SPDX-License-Identifier: Apache-2.0
"""Stand-in for @rules_java//java:defs.bzl.

Nothing here is written in Java; Bazel's own tool packages load these names.
"""

java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_proto_library = native.java_proto_library
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain

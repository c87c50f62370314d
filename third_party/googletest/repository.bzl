# SPDX-License-Identifier: Apache-2.0
"""GoogleTest, built from the sources that Debian installs."""

_SOURCES = "/usr/src/googletest"

# CMakeLists.txt says: set(GOOGLETEST_VERSION 1.12.1)
_VERSION_KEY = "set(GOOGLETEST_VERSION "

def _version(text):
    _, _, rest = text.partition(_VERSION_KEY)
    return [int(part) for part in rest.partition(")")[0].split(".")]

def _googletest_sources_impl(repository_ctx):
    wanted = [int(part) for part in repository_ctx.attr.min_version.split(".")]
    sources = repository_ctx.path(_SOURCES)
    if not sources.exists:
        fail("\n\nThe sources of GoogleTest are not installed.\nInstall them: apt-get install googletest\n(or run ./devtool setup, which installs all that is missing)\n")
    found = _version(repository_ctx.read(_SOURCES + "/CMakeLists.txt"))
    if found < wanted:
        fail("\n\nGoogleTest is {}, but at least {} is needed.\nInstall it: apt-get install googletest\n".format(found, wanted))
    for directory in ["googletest", "googlemock"]:
        repository_ctx.symlink(_SOURCES + "/" + directory, directory)
    repository_ctx.symlink(repository_ctx.attr._build_file, "BUILD.bazel")

googletest_sources = repository_rule(
    implementation = _googletest_sources_impl,
    doc = "@com_google_googletest//:gtest and :gtest_main.",
    configure = True,
    local = True,
    attrs = {
        "min_version": attr.string(mandatory = True),
        "_build_file": attr.label(
            default = "//third_party/googletest:googletest.BUILD.bazel",
        ),
    },
)

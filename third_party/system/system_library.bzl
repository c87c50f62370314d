# SPDX-License-Identifier: Apache-2.0
"""Libraries of the operating system under the labels their upstreams use.

pkg-config knows how to compile and link against an installed library; this
file writes its answers into cc_library targets. A library that is missing or
too old fails the build with the name of the Debian package to install.
"""

# In front of every library: a program then depends on what it uses, not on all
# that pkg-config lists. gRPC alone would bring in sixty libraries.
_AS_NEEDED = "-Wl,--as-needed"

# Debian's .pc files carry it for the sake of another operating system.
_IGNORED_FLAGS = ["-DNOMINMAX"]

# No chain of modules is longer; Starlark has no unbounded loop.
_MAX_DEPTH = 100

_BUILD_HEADER = """\
# Written by //third_party/system:system_library.bzl.
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])
"""

_LIBRARY = """
cc_library(
    name = "{name}",
    defines = {defines},
    linkopts = {linkopts},
    deps = {deps},
)
"""

_EXPORTED_FILE = """
exports_files(["{name}"])
"""

_FILEGROUP = """
filegroup(
    name = "{name}",
    srcs = glob(["{pattern}"]),
)
"""

def _fail_with_package(repository_ctx, problem):
    fail("\n\n{problem}\nInstall it: apt-get install {package}\n(or run ./devtool setup, which installs all that is missing)\n".format(
        problem = problem,
        package = repository_ctx.attr.debian_package,
    ))

def _require_program(repository_ctx, program):
    path = repository_ctx.which(program)
    if not path:
        _fail_with_package(
            repository_ctx,
            "The program {} is not installed.".format(program),
        )
    return path

def _run_pkg_config(repository_ctx, options, module):
    """Asks about one module, without regard to those it requires.

    Hence the depth (2 is the module itself): pkg-config would otherwise walk
    the graph of modules along every path, which for gRPC takes seconds.
    _closure() visits each module once.
    """
    pkg_config = repository_ctx.which("pkg-config")
    if not pkg_config:
        fail("\n\npkg-config is not installed.\nInstall it: apt-get install pkg-config\n")
    return repository_ctx.execute(
        [pkg_config, "--maximum-traverse-depth=2"] + options + [module],
    )

def _check_version(repository_ctx, module):
    result = _run_pkg_config(repository_ctx, ["--modversion"], module)
    if result.return_code != 0:
        _fail_with_package(
            repository_ctx,
            "The library {} is not installed.".format(module),
        )
    wanted = repository_ctx.attr.min_version
    at_least = _run_pkg_config(
        repository_ctx,
        ["--atleast-version=" + wanted],
        module,
    )
    if at_least.return_code != 0:
        _fail_with_package(
            repository_ctx,
            "The library {} is {}, but at least {} is needed.".format(
                module,
                result.stdout.strip(),
                wanted,
            ),
        )

def _describe(repository_ctx, module):
    """Returns the flags of one module, without those of what it requires."""
    requires = _run_pkg_config(repository_ctx, ["--print-requires"], module)
    flags = _run_pkg_config(repository_ctx, ["--cflags", "--libs"], module)
    if requires.return_code != 0 or flags.return_code != 0:
        _fail_with_package(repository_ctx, requires.stderr + flags.stderr)
    return struct(
        flags = [
            flag.strip()
            for flag in flags.stdout.split(" ")
            if flag.strip() and flag.strip() not in _IGNORED_FLAGS
        ],
        # Each line is "name" or "name >= version".
        requires = [
            line.split(" ")[0]
            for line in requires.stdout.split("\n")
            if line.strip()
        ],
    )

def _closure(repository_ctx, modules, known):
    """Returns the modules and all they require, each after who requires it.

    Args:
      repository_ctx: the context of the repository rule.
      modules: names of pkg-config modules.
      known: from module to its description; filled here.
    """
    reached = {module: True for module in modules}
    frontier = modules
    for _ in range(_MAX_DEPTH):
        found = []
        for module in frontier:
            if module not in known:
                known[module] = _describe(repository_ctx, module)
            for required in known[module].requires:
                if required not in reached:
                    reached[required] = True
                    found.append(required)
        if not found:
            return reached.keys()
        frontier = found
    fail("The modules required by {} nest too deeply.".format(modules))

def _pkg_config_library(repository_ctx, name, modules, known):
    defines = {}

    # The order does not matter: these are shared libraries, and all objects
    # stand in front of them.
    linkopts = {}
    for module in _closure(repository_ctx, modules, known):
        for flag in known[module].flags:
            if flag.startswith("-D"):
                defines[flag[len("-D"):]] = True
            elif flag.startswith("-I"):
                # Bazel would refuse the headers, with a less helpful message.
                fail("The headers of {} are outside the compiler's path.".format(module))
            elif flag.startswith("-l") or flag == "-pthread":
                linkopts[flag] = True
    return _LIBRARY.format(
        name = name,
        defines = repr(defines.keys()),
        linkopts = repr([_AS_NEEDED] + linkopts.keys()),
        deps = "[]",
    )

def _plain_library(repository_ctx, name, library):
    # Some of these act by being there (a static constructor registers them), so
    # the linker must not drop them for want of a symbol used.
    linkopts = [
        "-Wl,--push-state,--no-as-needed",
        "-l" + library,
        "-Wl,--pop-state",
    ]
    return _LIBRARY.format(
        name = name,
        defines = "[]",
        linkopts = repr(linkopts),
        deps = repr(repository_ctx.attr.plain_library_deps),
    )

def _split_label(label):
    """Splits "absl/strings:str_format" into its package and its name."""
    package, _, name = label.partition(":")
    return package, name

def _system_library_impl(repository_ctx):
    packages = {}
    known = {}
    for module in repository_ctx.attr.checked_modules:
        _check_version(repository_ctx, module)
    for label, modules in repository_ctx.attr.libraries.items():
        package, name = _split_label(label)
        text = _pkg_config_library(
            repository_ctx,
            name,
            modules.split(" "),
            known,
        )
        packages.setdefault(package, []).append(text)
    for label, library in repository_ctx.attr.plain_libraries.items():
        package, name = _split_label(label)
        text = _plain_library(repository_ctx, name, library)
        packages.setdefault(package, []).append(text)
    for label, program in repository_ctx.attr.programs.items():
        package, name = _split_label(label)
        path = _require_program(repository_ctx, program)
        link = (package + "/" if package else "") + name
        repository_ctx.symlink(path, link)
        text = _EXPORTED_FILE.format(name = name)
        packages.setdefault(package, []).append(text)
    for label, pattern in repository_ctx.attr.filegroups.items():
        package, name = _split_label(label)
        text = _FILEGROUP.format(name = name, pattern = pattern)
        packages.setdefault(package, []).append(text)
    for target, link in repository_ctx.attr.symlinks.items():
        if not repository_ctx.path(target).exists:
            _fail_with_package(repository_ctx, "{} is missing.".format(target))
        repository_ctx.symlink(target, link)

    for package, texts in packages.items():
        path = (package + "/" if package else "") + "BUILD.bazel"
        repository_ctx.file(path, _BUILD_HEADER + "".join(texts))

system_library = repository_rule(
    implementation = _system_library_impl,
    doc = "One upstream's libraries, as installed on this machine.",
    # Asked anew whenever the Bazel server starts: an upgrade of the system
    # must not meet the answers of yesterday.
    configure = True,
    local = True,
    environ = [
        "PATH",
        "PKG_CONFIG_PATH",
    ],
    attrs = {
        "checked_modules": attr.string_list(
            mandatory = True,
            doc = "pkg-config modules whose version is checked.",
        ),
        "debian_package": attr.string(
            mandatory = True,
            doc = "What to install, as the error message says it.",
        ),
        "filegroups": attr.string_dict(
            doc = "From label to a glob pattern in its package.",
        ),
        "libraries": attr.string_dict(
            doc = "From label (package:name) to pkg-config modules.",
        ),
        "min_version": attr.string(
            mandatory = True,
            doc = "The oldest version of the modules checked.",
        ),
        "plain_libraries": attr.string_dict(
            doc = "From label to the name after -l, for a library that has " +
                  "no .pc file.",
        ),
        "plain_library_deps": attr.string_list(
            doc = "What all the plain libraries depend on.",
        ),
        "programs": attr.string_dict(
            doc = "From label to the name of a program on the PATH.",
        ),
        "symlinks": attr.string_dict(
            doc = "From an absolute path to the name it has here.",
        ),
    },
)

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns Bazel's compile actions into a compilation database.

  bazel aquery --output=jsonproto 'mnemonic(CppCompile, //...)' |
    tools/compile_commands.py --workspace=DIR --execution-root=DIR \
      --output-base=DIR > compile_commands.json

Bazel's paths are relative to a directory that comes and goes; in the database
they are absolute, so that editors and clang-tidy find generated headers and the
sources of external repositories.
"""

import argparse
import json
import re
import sys


def absolute(argument, options):
    """Makes the path in one compiler argument absolute, if it has one."""
    # The path stands alone, or behind -I, -iquote= and the like.
    argument = re.sub(
        r"^(-I|-iquote=?|-isystem=?)?bazel-out/",
        lambda m: (m[1] or "") + options.execution_root + "/bazel-out/",
        argument,
    )
    return re.sub(
        r"^(-I|-iquote=?|-isystem=?)?external/",
        lambda m: (m[1] or "") + options.output_base + "/external/",
        argument,
    )


def source_of(arguments):
    """Returns what -c names: the file that the action compiles."""
    return arguments[arguments.index("-c") + 1]


def entries(actions, options):
    """Yields one database entry for each source file of ours."""
    seen = set()
    for action in actions:
        arguments = action.get("arguments", [])
        if "-c" not in arguments:
            continue
        source = source_of(arguments)
        # Neither generated nor external code is ours to check.
        if source.startswith(("bazel-out/", "external/")) or source in seen:
            continue
        seen.add(source)
        yield {
            "directory": options.workspace,
            "file": source,
            "arguments": [absolute(a, options) for a in arguments],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--execution-root", required=True)
    parser.add_argument("--output-base", required=True)
    options = parser.parse_args()

    actions = json.load(sys.stdin).get("actions", [])
    database = sorted(entries(actions, options), key=lambda e: e["file"])
    json.dump(database, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs clang-tidy over files, and not again over what was found clean.

A file is what the compiler sees of it: itself, with comments, and all that it
includes. Its digest, together with the checks and clang-tidy's version, names
an empty file in the cache once it has been found clean. Exits with 1 if any
file is not.
"""

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys

CLANG_TIDY = "clang-tidy-19"


def compile_commands(build_path):
    """The compile command of each file, by its path."""
    text = (build_path / "compile_commands.json").read_text()
    return {entry["file"]: entry for entry in json.loads(text)}


def preprocess(entry):
    """What the compiler sees, as bytes; None if it cannot be preprocessed."""
    command = entry.get("arguments") or shlex.split(entry["command"])
    arguments = []
    skip = False
    for argument in command:
        if skip or argument in ("-c", "-MD", "-MF", "-o"):
            skip = not skip and argument in ("-MF", "-o")
            continue
        arguments.append(argument)
    done = subprocess.run(
        arguments + ["-E", "-P", "-C"], cwd=entry["directory"], check=False,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else None


def settings():
    """What besides a file decides whether it is clean, as bytes."""
    version = subprocess.run([CLANG_TIDY, "--version"], check=True,
                             stdout=subprocess.PIPE).stdout
    return version + pathlib.Path(".clang-tidy").read_bytes()


def check(file, entry, options, common):
    """Returns clang-tidy's output if `file` is not clean, else None."""
    source = preprocess(entry) if entry else None
    stamp = None
    if source is not None:
        # The file's own text too: checks of macros see it unexpanded.
        text = pathlib.Path(file).read_bytes()
        digest = hashlib.sha256(common + text + source).hexdigest()
        stamp = options.cache / digest
        if stamp.exists():
            return None
    done = subprocess.run(
        [CLANG_TIDY, "--quiet", "-p", str(options.build_path), file],
        check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode == 0 and not done.stdout.strip():
        if stamp is not None:
            stamp.touch()
        return None
    return done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--build-path", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    commands = compile_commands(options.build_path)
    common = settings()
    dirty = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(
            lambda file: check(file, commands.get(file), options, common),
            options.files)
        for number, (file, output) in enumerate(zip(options.files, results), 1):
            print(f"[{number}/{len(options.files)}] {file}", file=sys.stderr)
            if output is not None:
                dirty += 1
                print(output, end="")
    if dirty:
        print(f"{dirty} of {len(options.files)} files are not clean",
              file=sys.stderr)
    return 1 if dirty else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists the test cases of one `bazel test`, from its build events.

  bazel test --build_event_json_file=EVENTS //...
  tools/test_results.py --config=asan EVENTS

Prints one line for each case, tab-separated: passed, failed or skipped; the
configuration; the name; the reason, where there is one.

What counts is the case, not the target, so that one skipped case among ten
shows. Bazel's own verdict overrules the report of the test: a leak found after
the last case fails the target although every case passed. A target without any
case fails, since a test that tests nothing must not look like one that passed.
"""

import argparse
import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree

# A shell test says this, with a reason, to be counted as skipped.
SHELL_SKIP = "SKIPPED: "

# What an unfinished target is called where no test result names it.
ABORTED = ("targetCompleted", "targetConfigured", "pattern", "configuredLabel")


def read_events(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def one_line(text):
    return " ".join(text.split())


def output_path(result, name):
    """Returns the local path of test.xml or test.log, or None."""
    for output in result.get("testActionOutput", []):
        if output["name"] == name and "uri" in output:
            return urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
    return None


def shell_skip_reason(log):
    """Returns the reason in a log that says "SKIPPED: reason", or None."""
    if log is None:
        return None
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(SHELL_SKIP):
                return one_line(line[len(SHELL_SKIP) :])
    return None


def skip_reason(case):
    """Returns why a GoogleTest case was skipped, or None if it was not."""
    skipped = case.find("skipped")
    if skipped is not None:
        # "file.cc:12\nreason": the place is of no use to a reader of a summary.
        lines = skipped.get("message", "").split("\n", 1)
        return one_line(lines[-1]) or "no reason given"
    if case.get("status") == "notrun":
        return "disabled in the source"
    return None


def case_verdict(case):
    """Returns (status, reason) of one <testcase>."""
    reason = skip_reason(case)
    if reason is not None:
        return "skipped", reason
    for kind in ("failure", "error"):
        problem = case.find(kind)
        if problem is not None:
            return "failed", one_line(problem.get("message", ""))[:200]
    return "passed", ""


def cases_of(label, result):
    """Yields (status, name, reason) for each case of one test target."""
    xml = output_path(result, "test.xml")
    if xml is None:
        return
    for case in ElementTree.parse(xml).iter("testcase"):
        status, reason = case_verdict(case)
        # Bazel writes the report of a test that has none of its own; its one
        # case is called after the target.
        if "classname" not in case.attrib:
            skip = shell_skip_reason(output_path(result, "test.log"))
            if status == "passed" and skip is not None:
                status, reason = "skipped", skip
            yield status, label, reason
        else:
            name = f"{case.get('classname')}.{case.get('name')}"
            yield status, f"{label} {name}", reason


def target_results(label, result):
    """Yields the cases of a target, and a failure of the target as a whole."""
    verdict = result.get("status", "NO_STATUS")
    cases = list(cases_of(label, result))
    yield from cases
    if verdict != "PASSED":
        if not any(status == "failed" for status, _, _ in cases):
            yield "failed", label, f"{verdict} outside of any test case"
    elif not cases:
        yield "failed", label, "has no test cases"


def last_attempts(events):
    """Returns {(label, run, shard): result of the last attempt}."""
    results = {}
    for event in events:
        key = event["id"].get("testResult")
        if key is not None and "testResult" in event:
            place = (key["label"], key.get("run", 1), key.get("shard", 1))
            results[place] = event["testResult"]
    return results


def build_failures(events):
    """Yields targets that could not be built, or not even be analysed."""
    for event in events:
        for kind in ABORTED:
            key = event["id"].get(kind)
            if key is None:
                continue
            label = key.get("label") or " ".join(key.get("pattern", []))
            if "aborted" in event:
                reason = event["aborted"].get("description", "")
                yield "failed", label, f"build aborted: {one_line(reason)[:200]}"
            elif kind == "targetCompleted":
                if not event.get("completed", {}).get("success", False):
                    yield "failed", label, "does not build"


def all_results(events):
    results = last_attempts(events)
    for (label, _, _), result in sorted(results.items()):
        yield from target_results(label, result)
    tested = {label for label, _, _ in results}
    reported = set()
    for status, label, reason in build_failures(events):
        if label not in tested | reported:
            reported.add(label)
            yield status, label, reason


def exit_code(events):
    """Returns what Bazel itself says of the whole run."""
    for event in events:
        if "finished" in event:
            return event["finished"].get("exitCode", {}).get("name", "UNKNOWN")
    return "no end of the run recorded"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("events")
    options = parser.parse_args()

    events = read_events(options.events)
    results = list(all_results(events))
    statuses = {status for status, _, _ in results}
    if "failed" not in statuses and exit_code(events) != "SUCCESS":
        results.append(("failed", "//...", f"bazel: {exit_code(events)}"))
    elif not statuses & {"passed", "failed"}:
        results.append(("failed", "//...", "no test ran"))
    for status, name, reason in results:
        print(status, options.config, name, reason, sep="\t")


if __name__ == "__main__":
    sys.exit(main())

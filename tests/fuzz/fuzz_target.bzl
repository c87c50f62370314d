# SPDX-License-Identifier: Apache-2.0
"""A fuzzer: one function that is given bytes and must not find a fault.

    fuzz_target(
        name = "page_batch_fuzz",
        deps = ["//uffd:response_decoder"],
    )

takes page_batch_fuzz.cc, which defines LLVMFuzzerTestOneInput, and makes

  page_batch_fuzz       the fuzzer, linked with libFuzzer. Builds with
                        --config=asan-ubsan only, so no pattern names it;
                        `./devtool fuzz` builds and runs it.
  page_batch_fuzz_test  runs the inputs in corpus/page_batch_fuzz/ once, in
                        every configuration. Fails if there are none.
"""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

def fuzz_target(name, deps, srcs = None, tags = []):
    """Declares a fuzzer and the test of its corpus.

    Args:
      name: ends in "_fuzz"; also the name of the directory below corpus/.
      deps: what the target calls.
      srcs: defaults to [name + ".cc"].
      tags: of the test and the library, such as "no-tsan".
    """
    corpus = native.glob(["corpus/%s/*" % name])
    cc_library(
        name = name + "_target",
        testonly = True,
        srcs = srcs or [name + ".cc"],
        tags = tags,
        deps = deps,
        # Nothing in it is referred to by name but from the engine's library.
        alwayslink = True,
    )
    cc_binary(
        name = name,
        testonly = True,
        linkopts = ["-fsanitize=fuzzer"],
        tags = tags + ["manual"],
        deps = [":%s_target" % name],
    )
    cc_test(
        name = name + "_test",
        size = "small",
        srcs = ["replay_main.cc"],
        args = ["%s/%s" % (native.package_name(), file) for file in corpus],
        data = corpus,
        tags = tags,
        deps = [":%s_target" % name],
    )

# SPDX-License-Identifier: Apache-2.0
"""Every system library this project uses, and how old it may be.

The versions are those of Debian 12. A new dependency is one entry here.
"""

load("//third_party/googletest:repository.bzl", "googletest_sources")
load(":system_library.bzl", "system_library")

# From the label upstream gives a target to Debian's pkg-config module.
_ABSL = {
    "absl/algorithm:algorithm": "absl_algorithm",
    "absl/algorithm:container": "absl_algorithm_container",
    "absl/base:base": "absl_base",
    "absl/base:config": "absl_config",
    "absl/base:core_headers": "absl_core_headers",
    "absl/base:dynamic_annotations": "absl_dynamic_annotations",
    "absl/base:endian": "absl_endian",
    "absl/base:errno_saver": "absl_errno_saver",
    "absl/base:log_severity": "absl_log_severity",
    "absl/base:prefetch": "absl_prefetch",
    "absl/cleanup:cleanup": "absl_cleanup",
    "absl/container:btree": "absl_btree",
    "absl/container:fixed_array": "absl_fixed_array",
    "absl/container:flat_hash_map": "absl_flat_hash_map",
    "absl/container:flat_hash_set": "absl_flat_hash_set",
    "absl/container:inlined_vector": "absl_inlined_vector",
    "absl/container:node_hash_map": "absl_node_hash_map",
    "absl/container:node_hash_set": "absl_node_hash_set",
    "absl/debugging:failure_signal_handler": "absl_failure_signal_handler",
    "absl/debugging:leak_check": "absl_leak_check",
    "absl/debugging:stacktrace": "absl_stacktrace",
    "absl/debugging:symbolize": "absl_symbolize",
    "absl/flags:commandlineflag": "absl_flags_commandlineflag",
    "absl/flags:config": "absl_flags_config",
    "absl/flags:flag": "absl_flags",
    "absl/flags:marshalling": "absl_flags_marshalling",
    "absl/flags:parse": "absl_flags_parse",
    "absl/flags:program_name": "absl_flags_program_name",
    "absl/flags:reflection": "absl_flags_reflection",
    "absl/flags:usage": "absl_flags_usage",
    # Upstream keeps the exit code and help handling behind this one.
    "absl/flags:usage_internal": "absl_flags_usage_internal",
    "absl/functional:any_invocable": "absl_any_invocable",
    "absl/functional:bind_front": "absl_bind_front",
    "absl/functional:function_ref": "absl_function_ref",
    "absl/hash:hash": "absl_hash",
    "absl/memory:memory": "absl_memory",
    "absl/meta:type_traits": "absl_type_traits",
    "absl/numeric:bits": "absl_bits",
    "absl/numeric:int128": "absl_int128",
    "absl/random:bit_gen_ref": "absl_random_bit_gen_ref",
    "absl/random:distributions": "absl_random_distributions",
    "absl/random:random": "absl_random_random",
    "absl/random:seed_sequences": "absl_random_seed_sequences",
    "absl/status:status": "absl_status",
    "absl/status:statusor": "absl_statusor",
    "absl/strings:cord": "absl_cord",
    "absl/strings:str_format": "absl_str_format",
    "absl/strings:strings": "absl_strings",
    "absl/synchronization:synchronization": "absl_synchronization",
    "absl/time:time": "absl_time",
    "absl/types:any": "absl_any",
    "absl/types:compare": "absl_compare",
    "absl/types:optional": "absl_optional",
    "absl/types:span": "absl_span",
    "absl/types:variant": "absl_variant",
    "absl/utility:utility": "absl_utility",
}

def system_repositories():
    """Declares the external repositories that BUILD files name."""
    googletest_sources(
        name = "com_google_googletest",
        min_version = "1.12.1",
    )
    system_library(
        name = "com_google_absl",
        checked_modules = ["absl_status"],
        debian_package = "libabsl-dev",
        libraries = _ABSL,
        min_version = "20220623",
    )
    system_library(
        name = "com_google_protobuf",
        checked_modules = ["protobuf"],
        debian_package = "protobuf-compiler libprotobuf-dev",
        filegroups = {":well_known_protos": "google/protobuf/*.proto"},
        libraries = {
            ":protobuf": "protobuf",
            ":protobuf_lite": "protobuf-lite",
        },
        min_version = "3.21.0",
        programs = {":protoc": "protoc"},
        symlinks = {"/usr/include/google/protobuf": "google/protobuf"},
    )
    system_library(
        name = "com_github_grpc_grpc",
        checked_modules = ["grpc++"],
        debian_package = "libgrpc++-dev protobuf-compiler-grpc",
        # Generated code calls protobuf as well as gRPC.
        libraries = {":grpc++": "grpc++ protobuf"},
        min_version = "1.51.0",
        plain_libraries = {
            ":grpc++_error_details": "grpc++_error_details",
            ":grpc++_reflection": "grpc++_reflection",
            ":grpcpp_channelz": "grpcpp_channelz",
        },
        plain_library_deps = [":grpc++"],
        programs = {"src/compiler:grpc_cpp_plugin": "grpc_cpp_plugin"},
    )
    system_library(
        name = "com_github_google_benchmark",
        checked_modules = ["benchmark"],
        debian_package = "libbenchmark-dev",
        libraries = {":benchmark": "benchmark"},
        min_version = "1.7.1",
        plain_libraries = {":benchmark_main": "benchmark_main"},
        plain_library_deps = [":benchmark"],
    )
    system_library(
        name = "com_github_intel_isal",
        checked_modules = ["libisal"],
        debian_package = "libisal-dev",
        libraries = {":isal": "libisal"},
        min_version = "2.30.0",
    )
    system_library(
        name = "com_github_axboe_liburing",
        checked_modules = ["liburing"],
        debian_package = "liburing-dev",
        libraries = {":liburing": "liburing"},
        min_version = "2.3",
    )
    system_library(
        name = "com_github_facebook_zstd",
        checked_modules = ["libzstd"],
        debian_package = "libzstd-dev",
        libraries = {":zstd": "libzstd"},
        min_version = "1.5.4",
    )
    system_library(
        name = "com_github_jupp0r_prometheus_cpp",
        checked_modules = ["prometheus-cpp-pull"],
        debian_package = "prometheus-cpp-dev",
        libraries = {
            "core:core": "prometheus-cpp-core",
            "pull:pull": "prometheus-cpp-pull",
        },
        min_version = "1.0.1",
    )
    system_library(
        name = "com_github_systemd_systemd",
        checked_modules = ["libsystemd"],
        debian_package = "libsystemd-dev",
        libraries = {":libsystemd": "libsystemd"},
        min_version = "252",
    )
    system_library(
        name = "com_github_curl_curl",
        checked_modules = ["libcurl"],
        debian_package = "libcurl4-openssl-dev",
        min_version = "7.88.1",
        # Its .pc file names a folder where the compiler looks anyway.
        plain_libraries = {":curl": "curl"},
    )
    system_library(
        name = "openssl",
        checked_modules = ["libcrypto"],
        debian_package = "libssl-dev",
        libraries = {":crypto": "libcrypto"},
        min_version = "3.0.0",
    )

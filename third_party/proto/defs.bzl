# SPDX-License-Identifier: Apache-2.0
"""C++ from .proto files: messages, and gRPC services where asked for.

In proto/BUILD.bazel, whose package is the root of all imports:

    load("//third_party/proto:defs.bzl", "postcopy_proto")

    postcopy_proto(
        name = "common_proto",
        srcs = ["postcopy/v1/common.proto"],
        visibility = ["//visibility:public"],
    )

    postcopy_proto(
        name = "data_plane_proto",
        srcs = ["postcopy/v1/data_plane.proto"],
        grpc = True,
        visibility = ["//visibility:public"],
        deps = [":common_proto"],
    )

A .proto file imports by the path below the package ("postcopy/v1/common.proto");
Google's well-known types ("google/protobuf/timestamp.proto") need no entry in
deps. C++ names the target in its deps and includes "postcopy/v1/common.pb.h",
or "postcopy/v1/data_plane.grpc.pb.h" where grpc = True.

protoc sees declared files only, so an import without its entry in deps fails.
"""

load("@rules_cc//cc:defs.bzl", "cc_library")
load("@rules_cc//cc/common:cc_info.bzl", "CcInfo")

ProtoSourcesInfo = provider(
    doc = "The .proto files behind a target.",
    fields = {
        "import_roots": "depset of directories that imports start from",
        "sources": "depset of this target's .proto files and all they import",
    },
)

def _stem(ctx, source):
    """"postcopy/v1/common" of proto/postcopy/v1/common.proto in //proto."""
    prefix = ctx.label.package + "/" if ctx.label.package else ""
    if not source.short_path.startswith(prefix):
        fail("{} lies outside the package {}".format(
            source.short_path,
            ctx.label.package,
        ))
    return source.short_path[len(prefix):-len(".proto")]

def _declare_outputs(ctx, suffix):
    return [
        ctx.actions.declare_file(_stem(ctx, source) + suffix)
        for source in ctx.files.srcs
    ]

def _output_directory(ctx):
    return "/".join([
        part
        for part in [ctx.bin_dir.path, ctx.label.workspace_root, ctx.label.package]
        if part
    ])

def _import_root(ctx):
    return "/".join([
        part
        for part in [ctx.label.workspace_root, ctx.label.package]
        if part
    ]) or "."

def _proto_codegen_impl(ctx):
    headers = _declare_outputs(ctx, ".pb.h")
    sources = _declare_outputs(ctx, ".pb.cc")
    tools = [ctx.executable._protoc]

    info = ProtoSourcesInfo(
        import_roots = depset(
            [_import_root(ctx)],
            transitive = [dep[ProtoSourcesInfo].import_roots for dep in ctx.attr.deps],
        ),
        sources = depset(
            ctx.files.srcs,
            transitive = [dep[ProtoSourcesInfo].sources for dep in ctx.attr.deps],
        ),
    )

    arguments = ctx.actions.args()
    arguments.add_all(info.import_roots, format_each = "--proto_path=%s")

    # The well-known types are at <root>/google/protobuf/<name>.proto.
    well_known_root = ctx.attr._well_known_protos.label.workspace_root
    arguments.add(well_known_root, format = "--proto_path=%s")
    arguments.add(_output_directory(ctx), format = "--cpp_out=%s")
    if ctx.attr.grpc:
        headers += _declare_outputs(ctx, ".grpc.pb.h")
        sources += _declare_outputs(ctx, ".grpc.pb.cc")
        tools.append(ctx.executable._grpc_cpp_plugin)
        arguments.add(
            ctx.executable._grpc_cpp_plugin,
            format = "--plugin=protoc-gen-grpc=%s",
        )
        arguments.add(_output_directory(ctx), format = "--grpc_out=%s")
    arguments.add_all([_stem(ctx, source) + ".proto" for source in ctx.files.srcs])

    ctx.actions.run(
        arguments = [arguments],
        executable = ctx.executable._protoc,
        inputs = depset(
            ctx.files._well_known_protos,
            transitive = [info.sources],
        ),
        mnemonic = "ProtocCpp",
        outputs = headers + sources,
        progress_message = "Generating C++ from the protos of %s" % ctx.label,
        tools = tools,
    )
    return [
        DefaultInfo(files = depset(sources)),
        OutputGroupInfo(headers = depset(headers)),
        info,
    ]

_proto_codegen = rule(
    implementation = _proto_codegen_impl,
    attrs = {
        "deps": attr.label_list(providers = [ProtoSourcesInfo]),
        "grpc": attr.bool(),
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "_grpc_cpp_plugin": attr.label(
            allow_single_file = True,
            cfg = "exec",
            default = "@com_github_grpc_grpc//src/compiler:grpc_cpp_plugin",
            executable = True,
        ),
        "_protoc": attr.label(
            allow_single_file = True,
            cfg = "exec",
            default = "@com_google_protobuf//:protoc",
            executable = True,
        ),
        "_well_known_protos": attr.label(
            default = "@com_google_protobuf//:well_known_protos",
        ),
    },
)

def _proto_library_impl(ctx):
    return [
        ctx.attr.codegen[ProtoSourcesInfo],
        ctx.attr.library[CcInfo],
        ctx.attr.library[DefaultInfo],
    ]

# What dependants see: the compiled code for cc_* rules, and the .proto sources
# for other postcopy_proto targets. So one label serves both kinds of deps.
_proto_library = rule(
    implementation = _proto_library_impl,
    attrs = {
        "codegen": attr.label(mandatory = True, providers = [ProtoSourcesInfo]),
        "library": attr.label(mandatory = True, providers = [CcInfo]),
    },
)

def postcopy_proto(name, srcs, deps = [], grpc = False, **kwargs):
    """Compiles .proto files of this package to a C++ library.

    Args:
      name: what C++ targets and other postcopy_proto targets put in deps.
      srcs: .proto files at or below this package.
      deps: postcopy_proto targets whose files are imported.
      grpc: whether the files define services.
      **kwargs: visibility, tags, testonly and the like, for all targets.
    """
    codegen = name + "_codegen"
    headers = name + "_headers"
    library = name + "_cc"
    hidden = dict(kwargs, visibility = ["//visibility:private"])

    _proto_codegen(
        name = codegen,
        srcs = srcs,
        grpc = grpc,
        deps = deps,
        **hidden
    )
    native.filegroup(
        name = headers,
        srcs = [":" + codegen],
        output_group = "headers",
        **hidden
    )
    cc_library(
        name = library,
        srcs = [":" + codegen],
        hdrs = [":" + headers],
        # The compiler's view of generated code interests nobody.
        copts = ["-w"],
        # Passed with -isystem, which keeps warnings out of dependants too.
        includes = ["."],
        deps = deps + [
            "@com_google_protobuf//:protobuf",
        ] + (["@com_github_grpc_grpc//:grpc++"] if grpc else []),
        **hidden
    )
    _proto_library(
        name = name,
        codegen = ":" + codegen,
        library = ":" + library,
        **kwargs
    )

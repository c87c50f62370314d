#include "cmd/faultreplay/exchange_backend.h"

#include <sys/stat.h>

#include <fstream>
#include <memory>

#include "cmd/faultreplay/program_fixture.h"
#include "cmd/faultreplay/source_memory.h"
#include "dirtytrack/types.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

constexpr PageCount kPages{256};

class ExchangeBackendTest : public FaultReplayTest {};

// A server that ends, or dies, must not be waited for.
TEST_F(ExchangeBackendTest, WhatAStreamEndsWithoutDoesNotCome) {
  const std::string program = At("half-a-server");
  std::ofstream(program)
      << "#!/bin/sh\nexec cmd/faultreplay/faultreplay \"$@\" --pages=128\n";
  ASSERT_EQ(::chmod(program.c_str(), 0700), 0);
  auto source = SourceMemory::Create(kPages, {});
  ASSERT_TRUE(source.ok()) << source.status();
  const std::unique_ptr<Backend> backend = NewExchangeBackend(
      &*source, {.kind = EchoKind::kGrpc, .stream = true, .program = program});
  const absl::Status started = backend->Start();
  ASSERT_TRUE(started.ok()) << started;
  EXPECT_NE(backend->Touch(0, PageIndex(100), false), nullptr);
  EXPECT_EQ(backend->Touch(0, PageIndex(200), false), nullptr);
  EXPECT_EQ(backend->Touch(0, PageIndex(200), false), nullptr);
  BackendReport report;
  const absl::Status finished = backend->Finish(&report);
  EXPECT_TRUE(finished.ok()) << finished;
}

}  // namespace
}  // namespace postcopy

#include "cmd/security/daemon_security.h"

#include <string>

#include "cmd/security/test_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kControl[] = "127.0.0.1:0";
constexpr char kData[] = "127.0.0.1:0";
constexpr char kUnix[] = "unix:/run/postcopy/control.sock";

class DaemonSecurityTest : public ::testing::Test {
 protected:
  DaemonSecurityTest() {
    const DevAuthority authority = NewAuthority("a");
    directory_.Fill(authority.identity().certificate,
                    NewIdentity(authority, {"host"}, IdentityUse::kServer),
                    NewIdentity(authority, {"host"}, IdentityUse::kClient));
  }

  static void ExpectRefused(const absl::Status& status, absl::StatusCode code,
                            const ::testing::Matcher<std::string>& message) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), message);
  }

  static absl::Status Source(const SecurityOptions& options,
                             const std::string& control = kControl,
                             const std::string& data = kData) {
    return DaemonSecurity::ForSource(options, control, data).status();
  }
  static absl::Status Destination(const SecurityOptions& options,
                                  const std::string& control = kControl) {
    return DaemonSecurity::ForDestination(options, control).status();
  }

  TestDirectory directory_;
};

constexpr auto kOpen = absl::StatusCode::kFailedPrecondition;
constexpr auto kContradiction = absl::StatusCode::kInvalidArgument;

TEST_F(DaemonSecurityTest, NothingIsPlaintextUnlessAskedFor) {
  const auto control =
      AllOf(HasSubstr("the control plane at 127.0.0.1:0 would be plaintext"),
            HasSubstr("--tls_dir"), HasSubstr("--insecure_control"));
  ExpectRefused(Source({}), kOpen, control);
  ExpectRefused(Destination({}), kOpen, control);
  ExpectRefused(
      Source({.insecure_control = true}), kOpen,
      AllOf(HasSubstr("the data plane at"), HasSubstr("--insecure_data")));
  ExpectRefused(Destination({.insecure_control = true}), kOpen,
                AllOf(HasSubstr("the data plane of sources"),
                      HasSubstr("--insecure_data")));
  ExpectRefused(Source({}, kUnix), kOpen, HasSubstr("--insecure_data"));
}

TEST_F(DaemonSecurityTest, WhatWasAskedForIsThere) {
  const SecurityOptions tls = {.tls_dir = directory_.path()};
  const SecurityOptions plaintext = {.insecure_control = true,
                                     .insecure_data = true};
  for (const SecurityOptions& options : {tls, plaintext}) {
    auto source = DaemonSecurity::ForSource(options, kControl, kData);
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_NE((*source)->control().credentials, nullptr);
    EXPECT_NE((*source)->data().credentials, nullptr);
    auto destination = DaemonSecurity::ForDestination(options, kControl);
    ASSERT_TRUE(destination.ok()) << destination.status();
    EXPECT_NE((*destination)->control().credentials, nullptr);
    EXPECT_TRUE((*destination)->dialling().CredentialsFor("host:1").ok());
  }
}

TEST_F(DaemonSecurityTest, AUnixSocketNeedsNoCertificates) {
  auto source = DaemonSecurity::ForSource(
      {.insecure_data = true, .control_uids = {7}}, kUnix, kData);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->control().credentials, nullptr);
  EXPECT_EQ((*source)->control().uids, std::vector<uid_t>{7});
  EXPECT_TRUE(Destination({.insecure_data = true}, kUnix).ok());
}

TEST_F(DaemonSecurityTest, OnlyWhatIsUsedNeedsFiles) {
  directory_.Remove("server-cert.pem");
  directory_.Remove("server-key.pem");
  // It only dials.
  EXPECT_TRUE(Destination({.tls_dir = directory_.path()}, kUnix).ok());
  ExpectRefused(Destination({.tls_dir = directory_.path()}), kOpen,
                HasSubstr("server-cert.pem is missing"));
}

TEST_F(DaemonSecurityTest, WhatHasNoEffectIsRefused) {
  const std::string dir = directory_.path();
  ExpectRefused(
      Source({.tls_dir = dir, .insecure_control = true, .insecure_data = true}),
      kContradiction, HasSubstr("nothing uses TLS"));
  ExpectRefused(
      Source({.tls_dir = dir, .insecure_control = true, .control_peers = "a"}),
      kContradiction, HasSubstr("--control_peers"));
  ExpectRefused(
      Source({.tls_dir = dir, .insecure_data = true, .data_peers = "a"}),
      kContradiction, HasSubstr("--data_peers"));
  ExpectRefused(Source({.tls_dir = dir, .control_peers = "a"}, kUnix),
                kContradiction, HasSubstr("a Unix socket"));
  ExpectRefused(Source({.tls_dir = dir, .control_uids = {7}}), kContradiction,
                HasSubstr("--control_uids"));
  ExpectRefused(Source({.tls_dir = dir}, kControl, "unix:/run/data.sock"),
                kContradiction, HasSubstr("give host:port"));
}

TEST_F(DaemonSecurityTest, ListsThatAreNoneAreNamed) {
  const std::string dir = directory_.path();
  for (const bool source : {false, true}) {
    const auto make = [source](const SecurityOptions& options) {
      return source ? Source(options) : Destination(options);
    };
    ExpectRefused(make({.tls_dir = dir, .control_peers = "a,,b"}),
                  kContradiction, HasSubstr("--control_peers"));
    ExpectRefused(make({.tls_dir = dir, .data_peers = ","}), kContradiction,
                  HasSubstr("--data_peers"));
  }
}

TEST(ClientSecurityTest, DialsUnixSocketsAndWhatItWasToldTo) {
  EXPECT_TRUE(ClientSecurity().CredentialsFor("unix:/a").ok());
  const absl::Status status = ClientSecurity().CredentialsFor("h:1").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("h:1"), HasSubstr("--tls_dir")));
  EXPECT_TRUE(ClientSecurity::Plaintext().CredentialsFor("h:1").ok());
  EXPECT_EQ(ClientSecurity::FromFlags("/d", true).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ClientSecurity::FromFlags("/none", false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace postcopy

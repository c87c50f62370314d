#include "cmd/security/certificate_check.h"

#include <string>

#include "cmd/security/dev_certificates.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const absl::Time kFrom = absl::FromUnixSeconds(1'700'000'000);
const absl::Time kUntil = kFrom + absl::Hours(1);

class CertificateCheckTest : public ::testing::Test {
 protected:
  absl::Status Check(const std::string& certificate, const std::string& key,
                     absl::Time now = kFrom) const {
    return CheckIdentity({"cert.pem", certificate}, {"key.pem", key}, now);
  }

  void ExpectRefused(const absl::Status& status,
                     const ::testing::Matcher<std::string>& message) const {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), message);
  }

  const DevAuthority authority_ = *DevAuthority::Create("a");
  const Identity identity_ = *authority_.Issue(
      {"host"}, IdentityUse::kServer, {.from = kFrom, .until = kUntil});
};

TEST_F(CertificateCheckTest, HoldsFromTheFirstToTheLastSecond) {
  const auto check = [this](absl::Time now) {
    return Check(identity_.certificate, identity_.key, now);
  };
  EXPECT_TRUE(check(kFrom).ok());
  EXPECT_TRUE(check(kUntil).ok());
  ExpectRefused(check(kFrom - absl::Seconds(1)),
                AllOf(HasSubstr("cert.pem holds only from "
                                "2023-11-14 22:13:20 UTC"),
                      HasSubstr("clock")));
  ExpectRefused(check(kUntil + absl::Seconds(1)),
                HasSubstr("cert.pem has expired: it held until "
                          "2023-11-14 23:13:20 UTC"));
  EXPECT_EQ(HoldsUntil(identity_.certificate), kUntil);
  EXPECT_EQ(HoldsUntil("none"), absl::InfinitePast());
}

TEST_F(CertificateCheckTest, TheKeyMustBeTheCertificates) {
  const Identity other = *authority_.Issue({"host"}, IdentityUse::kServer);
  ExpectRefused(Check(identity_.certificate, other.key),
                HasSubstr("key.pem is not the key of cert.pem"));
}

TEST_F(CertificateCheckTest, WhatIsNoKey) {
  for (const std::string& key :
       {std::string(), std::string("none"), identity_.certificate,
        identity_.key.substr(0, 100)}) {
    ExpectRefused(Check(identity_.certificate, key),
                  HasSubstr("key.pem is no private key"));
  }
}

// OpenSSL would ask for it at the terminal.
TEST_F(CertificateCheckTest, AKeyWithAPassphraseIsRefusedAndNobodyAsked) {
  // openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256
  constexpr char kEncrypted[] =
      "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
      "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhsZMMvIOKStwICCAAw\n"
      "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEJvGIKNJHOINvcsJJDqvJbEEgZAz\n"
      "o3UpaX7zGacKn0+Z/aKlI3QcXXCpMgq4fx3hdsXFA9ie4TEm+7/CoOEW/feQsrfd\n"
      "J/9B3tYfCqjyPvTzxKeFCFFeh3EaTJeAwPoAKv/k5ni8ssD8zGP0OmERlETVvBaj\n"
      "rhabq1/oIAIatLJlpc4VYB86YmMZRrNs9BbwgQQAN/bcu02URbz8EK26JQI3WkA=\n"
      "-----END ENCRYPTED PRIVATE KEY-----\n";
  ExpectRefused(Check(identity_.certificate, kEncrypted),
                HasSubstr("has a passphrase"));
}

TEST_F(CertificateCheckTest, WhatIsNoCertificate) {
  for (const std::string& certificate :
       {std::string(), std::string("none"), identity_.key,
        identity_.certificate.substr(0, 100)}) {
    ExpectRefused(Check(certificate, identity_.key),
                  HasSubstr("cert.pem is no PEM file"));
    ExpectRefused(CheckAuthorities({"ca.pem", certificate}),
                  HasSubstr("ca.pem is no PEM file"));
  }
}

TEST_F(CertificateCheckTest, ManyInAFileAreLookedAtToTheLast) {
  const std::string& ca = authority_.identity().certificate;
  const std::string another = DevAuthority::Create("b")->identity().certificate;
  EXPECT_TRUE(CheckAuthorities({"ca.pem", ca + another}).ok());
  EXPECT_TRUE(Check(identity_.certificate + ca, identity_.key).ok());
  std::string damaged = ca + another;
  damaged[ca.size() + another.size() / 2] = '!';
  ExpectRefused(CheckAuthorities({"ca.pem", damaged}), HasSubstr("damaged"));
  ExpectRefused(Check(identity_.certificate + damaged, identity_.key),
                HasSubstr("damaged"));
}

}  // namespace
}  // namespace postcopy

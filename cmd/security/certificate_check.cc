#include "cmd/security/certificate_check.h"

#include <openssl/asn1.h>
#include <openssl/pem.h>

#include <ctime>
#include <string>

#include "absl/strings/str_cat.h"
#include "cmd/security/openssl_ptr.h"

namespace postcopy {
namespace {

template <typename... Parts>
absl::Status Unusable(const Parts&... parts) {
  ERR_clear_error();
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

OpensslPtr<BIO> Reader(absl::string_view text) {
  return OpensslPtr<BIO>(
      BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// The next certificate; null at the end, and at damage.
OpensslPtr<X509> NextCertificate(BIO* reader) {
  return OpensslPtr<X509>(PEM_read_bio_X509(reader, nullptr, nullptr, nullptr));
}

// Whether reading ended because there was no more.
bool AtEnd() {
  return ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
}

// The first certificate, when every other one can be read too.
OpensslPtr<X509> FirstOfWhole(absl::string_view pem) {
  ERR_clear_error();
  const OpensslPtr<BIO> reader = Reader(pem);
  OpensslPtr<X509> first = NextCertificate(reader.get());
  if (first == nullptr) return nullptr;
  while (NextCertificate(reader.get()) != nullptr) {
  }
  if (!AtEnd()) return nullptr;
  ERR_clear_error();
  return first;
}

OpensslPtr<EVP_PKEY> ReadKey(absl::string_view pem) {
  // An empty passphrase, or OpenSSL would ask at the terminal for one.
  char none[] = "";
  return OpensslPtr<EVP_PKEY>(
      PEM_read_bio_PrivateKey(Reader(pem).get(), nullptr, nullptr, none));
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm broken_down = {};
  if (ASN1_TIME_to_tm(time, &broken_down) != 1) return absl::InfinitePast();
  return absl::FromTM(broken_down, absl::UTCTimeZone());
}

std::string Text(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

absl::Status CheckTimes(absl::string_view name, const X509* certificate,
                        absl::Time now) {
  const absl::Time from = ToTime(X509_get0_notBefore(certificate));
  if (now < from) {
    return Unusable(name, " holds only from ", Text(from), ", and it is ",
                    Text(now),
                    ": is the clock of this host right? Else take a "
                    "certificate that holds now");
  }
  const absl::Time until = ToTime(X509_get0_notAfter(certificate));
  if (now > until) {
    return Unusable(name, " has expired: it held until ", Text(until),
                    "; put a new certificate there, with its key");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAuthorities(NamedPem ca) {
  if (FirstOfWhole(ca.pem) != nullptr) return absl::OkStatus();
  return Unusable(ca.name,
                  " is no PEM file of certificates (or one of them is "
                  "damaged): put there the certificates of the authorities "
                  "whose peers are to be believed");
}

absl::Status CheckIdentity(NamedPem certificate, NamedPem key, absl::Time now) {
  const OpensslPtr<X509> leaf = FirstOfWhole(certificate.pem);
  if (leaf == nullptr) {
    return Unusable(certificate.name,
                    " is no PEM file of certificates, or one of them is "
                    "damaged: put there the certificate, then those that lead "
                    "to its authority");
  }
  if (absl::Status s = CheckTimes(certificate.name, leaf.get(), now); !s.ok()) {
    return s;
  }
  const OpensslPtr<EVP_PKEY> private_key = ReadKey(key.pem);
  if (private_key == nullptr) {
    return Unusable(key.name,
                    " is no private key in PEM, or has a passphrase: put "
                    "there the key of ",
                    certificate.name, ", without one");
  }
  if (X509_check_private_key(leaf.get(), private_key.get()) != 1) {
    return Unusable(key.name, " is not the key of ", certificate.name,
                    ": put both of one pair there");
  }
  return absl::OkStatus();
}

absl::Time HoldsUntil(absl::string_view pem) {
  const OpensslPtr<X509> leaf = FirstOfWhole(pem);
  if (leaf == nullptr) {
    ERR_clear_error();
    return absl::InfinitePast();
  }
  return ToTime(X509_get0_notAfter(leaf.get()));
}

}  // namespace postcopy

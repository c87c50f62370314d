#include "cmd/security/dev_certificates.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "cmd/security/tls_file_names.h"
#include "dirtytrack/unique_fd.h"

namespace postcopy {
namespace {

constexpr char kAuthorityKeyFile[] = "ca-key.pem";

constexpr int kSerialBytes = 16;
// What RFC 5280 allows at least.
constexpr size_t kHostNameBytesMax = 253;

absl::Status OpensslFailed(absl::string_view what) {
  return absl::InternalError(
      absl::StrCat("OpenSSL cannot ", what, ": ", TakeOpensslError()));
}

bool IsHostName(absl::string_view name) {
  return !name.empty() && name.size() <= kHostNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '.' || c == '-' || c == '_' ||
                  c == '*';
         });
}

bool IsIpAddress(const std::string& name) {
  in6_addr address;  // room for either
  return ::inet_pton(AF_INET, name.c_str(), &address) == 1 ||
         ::inet_pton(AF_INET6, name.c_str(), &address) == 1;
}

bool IsUri(absl::string_view name) {
  return absl::StrContains(name, "://") &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isgraph(c) != 0 && c != ',';
         });
}

// As OpenSSL writes alternative names: "DNS:a,IP:127.0.0.1".
absl::StatusOr<std::string> AlternativeNames(
    absl::Span<const std::string> names) {
  std::vector<std::string> parts;
  for (const std::string& name : names) {
    if (IsIpAddress(name)) {
      parts.push_back("IP:" + name);
    } else if (IsUri(name)) {
      parts.push_back("URI:" + name);
    } else if (IsHostName(name)) {
      parts.push_back("DNS:" + name);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", name,
                       "\" is no host name, IP address or URI for a "
                       "certificate"));
    }
  }
  if (!parts.empty()) return absl::StrJoin(parts, ",");
  return absl::InvalidArgumentError("a certificate needs at least one name");
}

absl::StatusOr<std::string> CertificatePem(X509* certificate) {
  const OpensslPtr<BIO> bio(BIO_new(BIO_s_mem()));
  char* text = nullptr;
  if (PEM_write_bio_X509(bio.get(), certificate) != 1) {
    return OpensslFailed("write a certificate");
  }
  const long size = BIO_get_mem_data(bio.get(), &text);  // NOLINT: as OpenSSL
  return std::string(text, static_cast<size_t>(size));
}

absl::StatusOr<std::string> KeyPem(EVP_PKEY* key) {
  const OpensslPtr<BIO> bio(BIO_new(BIO_s_mem()));
  char* text = nullptr;
  if (PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr,
                               nullptr) != 1) {
    return OpensslFailed("write a key");
  }
  const long size = BIO_get_mem_data(bio.get(), &text);  // NOLINT: as OpenSSL
  return std::string(text, static_cast<size_t>(size));
}

bool SetSerial(X509* certificate) {
  std::array<unsigned char, kSerialBytes> bytes = {};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) return false;
  bytes[0] &= 0x7F;  // positive
  BIGNUM* const number = BN_bin2bn(bytes.data(), bytes.size(), nullptr);
  const bool set =
      number != nullptr &&
      BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != nullptr;
  BN_free(number);
  return set;
}

// A certificate without extensions, not signed yet.
OpensslPtr<X509> NewCertificate(const std::string& common_name, EVP_PKEY* key,
                                const Validity& validity) {
  OpensslPtr<X509> certificate(X509_new());
  X509_NAME* const name = X509_get_subject_name(certificate.get());
  const bool made =
      X509_set_version(certificate.get(), X509_VERSION_3) == 1 &&
      SetSerial(certificate.get()) &&
      ASN1_TIME_set(X509_getm_notBefore(certificate.get()),
                    absl::ToTimeT(validity.from)) != nullptr &&
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()),
                    absl::ToTimeT(validity.until)) != nullptr &&
      X509_NAME_add_entry_by_txt(
          name, "CN", MBSTRING_UTF8,
          reinterpret_cast<const unsigned char*>(common_name.data()),
          static_cast<int>(common_name.size()), -1, 0) == 1 &&
      X509_set_pubkey(certificate.get(), key) == 1;
  if (!made) return nullptr;
  return certificate;
}

bool AddExtension(X509* certificate, X509* issuer, int id,
                  const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const OpensslPtr<X509_EXTENSION> extension(
      X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
  return extension != nullptr &&
         X509_add_ext(certificate, extension.get(), -1) == 1;
}

bool Sign(X509* certificate, X509* issuer, EVP_PKEY* issuer_key) {
  return X509_set_issuer_name(certificate, X509_get_subject_name(issuer)) ==
             1 &&
         X509_sign(certificate, issuer_key, EVP_sha256()) != 0;
}

absl::StatusOr<Identity> ToPem(X509* certificate, EVP_PKEY* key) {
  absl::StatusOr<std::string> certificate_pem = CertificatePem(certificate);
  if (!certificate_pem.ok()) return certificate_pem.status();
  absl::StatusOr<std::string> key_pem = KeyPem(key);
  if (!key_pem.ok()) return key_pem.status();
  return Identity{*std::move(certificate_pem), *std::move(key_pem)};
}

absl::Status FileError(absl::string_view path, absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(errno)));
}

// A new file takes the place of what was there, whole or not at all.
absl::Status WriteFile(const std::string& path, absl::string_view text,
                       mode_t mode) {
  const std::string draft = path + ".new";
  ::unlink(draft.c_str());
  const UniqueFd fd(::open(draft.c_str(),
                           O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                           mode));
  if (!fd.valid()) return FileError(draft, "create");
  if (::write(fd.get(), text.data(), text.size()) !=
      static_cast<ssize_t>(text.size())) {
    return FileError(draft, "write");
  }
  if (::rename(draft.c_str(), path.c_str()) != 0) {
    return FileError(path, "replace");
  }
  return absl::OkStatus();
}

struct FileToWrite {
  absl::string_view name;
  absl::string_view text;
  bool secret;
};

absl::Status CheckNothingThere(const std::string& directory,
                               absl::Span<const FileToWrite> files) {
  for (const FileToWrite& file : files) {
    const std::string path = absl::StrCat(directory, "/", file.name);
    if (::access(path.c_str(), F_OK) == 0) {
      return absl::AlreadyExistsError(absl::StrCat(
          path,
          " is there already: choose another --dir, or overwrite it with "
          "--force"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

DevAuthority::DevAuthority(OpensslPtr<EVP_PKEY> key,
                           OpensslPtr<X509> certificate, Identity identity)
    : key_(std::move(key)),
      certificate_(std::move(certificate)),
      identity_(std::move(identity)) {}

absl::StatusOr<DevAuthority> DevAuthority::Create(const std::string& name,
                                                  Validity validity) {
  OpensslPtr<EVP_PKEY> key(EVP_EC_gen("P-256"));
  if (key == nullptr) return OpensslFailed("make a key");
  OpensslPtr<X509> certificate = NewCertificate(name, key.get(), validity);
  const bool made =
      certificate != nullptr &&
      AddExtension(certificate.get(), certificate.get(), NID_basic_constraints,
                   "critical,CA:TRUE") &&
      AddExtension(certificate.get(), certificate.get(), NID_key_usage,
                   "critical,keyCertSign,cRLSign") &&
      AddExtension(certificate.get(), certificate.get(),
                   NID_subject_key_identifier, "hash") &&
      Sign(certificate.get(), certificate.get(), key.get());
  if (!made) return OpensslFailed("make an authority");
  absl::StatusOr<Identity> identity = ToPem(certificate.get(), key.get());
  if (!identity.ok()) return identity.status();
  return DevAuthority(std::move(key), std::move(certificate),
                      *std::move(identity));
}

absl::StatusOr<Identity> DevAuthority::Issue(
    absl::Span<const std::string> names, IdentityUse use,
    Validity validity) const {
  absl::StatusOr<std::string> alternatives = AlternativeNames(names);
  if (!alternatives.ok()) return alternatives.status();
  const bool server = use == IdentityUse::kServer;
  const OpensslPtr<EVP_PKEY> key(EVP_EC_gen("P-256"));
  if (key == nullptr) return OpensslFailed("make a key");
  const OpensslPtr<X509> certificate =
      NewCertificate(server ? "postcopy dev server" : "postcopy dev client",
                     key.get(), validity);
  X509* const issuer = certificate_.get();
  const bool made = certificate != nullptr &&
                    AddExtension(certificate.get(), issuer,
                                 NID_basic_constraints, "critical,CA:FALSE") &&
                    AddExtension(certificate.get(), issuer, NID_key_usage,
                                 "critical,digitalSignature") &&
                    AddExtension(certificate.get(), issuer, NID_ext_key_usage,
                                 server ? "serverAuth" : "clientAuth") &&
                    AddExtension(certificate.get(), issuer,
                                 NID_authority_key_identifier, "keyid") &&
                    AddExtension(certificate.get(), issuer,
                                 NID_subject_alt_name, *alternatives) &&
                    Sign(certificate.get(), issuer, key_.get());
  if (!made) return OpensslFailed("make a certificate");
  return ToPem(certificate.get(), key.get());
}

absl::Status WriteDevCerts(const DevCertsOptions& options) {
  absl::StatusOr<DevAuthority> ca = DevAuthority::Create("postcopy dev CA");
  if (!ca.ok()) return ca.status();
  const auto server = ca->Issue(options.hosts, IdentityUse::kServer);
  if (!server.ok()) return server.status();
  const auto client = ca->Issue(options.hosts, IdentityUse::kClient);
  if (!client.ok()) return client.status();
  const std::array<FileToWrite, 6> files = {
      {{kAuthoritiesFile, ca->identity().certificate, false},
       {kAuthorityKeyFile, ca->identity().key, true},
       {kServerCertificateFile, server->certificate, false},
       {kServerKeyFile, server->key, true},
       {kClientCertificateFile, client->certificate, false},
       {kClientKeyFile, client->key, true}}};
  const std::string& directory = options.directory;
  if (!options.force) {
    absl::Status free = CheckNothingThere(directory, files);
    if (!free.ok()) return free;
  }
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return FileError(directory, "create");
  }
  for (const FileToWrite& file : files) {
    absl::Status written = WriteFile(absl::StrCat(directory, "/", file.name),
                                     file.text, file.secret ? 0600 : 0644);
    if (!written.ok()) return written;
  }
  return absl::OkStatus();
}

}  // namespace postcopy
